"""Text, trees and sentence pairs: what a language model is trained on and measured with."""
