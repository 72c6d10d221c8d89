"""Checkpoints as the families publish them, tiny: random weights, and a tokenizer of the family's real kind."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lmdynamics.corpora.grammar import VERSION
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.training.recipes import recipe_from_dict
from tests.measurements.conftest import WHOLE, random_treebank

# to be cut into pieces: by their letters, at an apostrophe, at an accent, and into the bytes of characters never seen
SPLIT = ("unbelievable", "walking", "don't", "naïve", "—", "U.S.", "犬", "plays")
TEXT = ["the dog sees a cat . an old man runs quickly and the dog and a man . un able walk ing play s"] * 4
STEPS = (0, 512)
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How to make a checkpoint of one family: `config` over SHAPE, `tokenizer`, and the class it is saved as."""

    name: str
    model_type: str
    saved_as: str
    tokenizer: Callable[[], hf.PreTrainedTokenizerBase]
    config: tuple[tuple[str, object], ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def objective(self) -> str:
        return "mlm" if self.model_type in ("bert", "roberta") else "clm"

    def model(self, seed: int) -> hf.PreTrainedModel:
        """A random model; biases and norms, too, are random."""
        tokenizer = self.tokenizer()
        special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
        options = SHAPE | {"vocab_size": len(tokenizer)} | special | dict(self.config)
        torch.manual_seed(seed)
        model = getattr(hf, self.saved_as)(hf.AutoConfig.for_model(self.model_type, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model.to(self.dtype)

    def save(self, folder: Path) -> Path:
        """A plain folder of checkpoints, each with its tokenizer."""
        for step in STEPS:
            self.model(seed=step).save_pretrained(folder / f"step-{step:06d}")
            self.tokenizer().save_pretrained(folder / f"step-{step:06d}")
        return folder

    def recipe(self):
        """A run of this architecture that is trained here: on the built-in language, with its tokenizer."""
        return recipe_from_dict(
            {
                "name": "tiny",
                "objective": self.objective,
                "corpus": {"kind": "grammar", "version": VERSION, "sentences": 200, "held_out": 40},
                "model": {"model_type": self.model_type, **SHAPE, **dict(self.config)},
                "training": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "lr": 1e-4},
            }
        )


def wordpiece() -> hf.BertTokenizer:
    letters = [chr(code) for code in range(33, 127)] + ["—", "犬"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary += [*(word for word in WHOLE if len(word) > 1), "un", "##believ", "##able", "walk", "##ing"]
    return hf.BertTokenizer({token: i for i, token in enumerate(vocabulary)})


def learnt(pre_tokenizer, special: list[str], alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 60, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return learnt(pre_tokenizers.ByteLevel(add_prefix_space=False), special, sorted(alphabet))


def roberta() -> hf.RobertaTokenizer:
    return hf.RobertaTokenizer(*byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


def gpt2() -> hf.GPT2Tokenizer:
    """Nothing around a text, no token for padding."""
    return hf.GPT2Tokenizer(*byte_level(["<|endoftext|>"]))


def neox() -> hf.GPTNeoXTokenizer:
    return hf.GPTNeoXTokenizer(*byte_level(["<|endoftext|>", "<|padding|>"]))


def llama2() -> hf.LlamaTokenizer:
    """A space in front of the text, <s> before it, bytes for letters it does not know; pads on the left, if at all."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return hf.LlamaTokenizer(*learnt(pre_tokenizers.Metaspace(), special, []), add_bos_token=True)


def cut_by_rule(special: list[str], **names: str) -> hf.PreTrainedTokenizerFast:
    """Byte-level, cut beforehand by a rule of its own: digits by threes, letters with one space or mark before them."""
    vocabulary, merges = byte_level(special)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    rule = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(rule, "isolated"), bytes_only])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if "bos_token" in names:
        first = names["bos_token"]
        template = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, vocabulary[first])])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama3() -> hf.PreTrainedTokenizerFast:
    return cut_by_rule(["<|begin|>", "<|end|>"], bos_token="<|begin|>", eos_token="<|end|>")


def olmo2() -> hf.PreTrainedTokenizerFast:
    return cut_by_rule(["<|endoftext|>", "<|pad|>"], eos_token="<|endoftext|>", pad_token="<|pad|>")


GROUPED = ("num_key_value_heads", 2)  # keys and values shared by two heads each
TIED, UNTIED = ("tie_word_embeddings", True), ("tie_word_embeddings", False)
FAMILIES = (
    Family("BERT", "bert", "BertForMaskedLM", wordpiece),
    Family("BERT for pre-training (MultiBERTs)", "bert", "BertForPreTraining", wordpiece),
    Family("RoBERTa", "roberta", "RobertaForMaskedLM", roberta),
    Family("GPT-2", "gpt2", "GPT2LMHeadModel", gpt2),
    # published in half precision, with rows in the embedding that no token has
    Family("Pythia (GPT-NeoX)", "gpt_neox", "GPTNeoXForCausalLM", neox, (("vocab_size", 400),), torch.float16),
    Family("Llama 2", "llama", "LlamaForCausalLM", llama2, (UNTIED,)),
    Family("Llama 3 (grouped queries, tied)", "llama", "LlamaForCausalLM", llama3, (TIED, GROUPED)),
    Family("OLMo-2", "olmo2", "Olmo2ForCausalLM", olmo2),
    Family("OLMo-2 (grouped queries)", "olmo2", "Olmo2ForCausalLM", olmo2, (GROUPED,)),
)  # fmt: skip


def treebank(sentences: int = 14) -> Treebank:
    """Random trees over words that tokenizers leave whole and words that they split; heads stand left and right."""
    bank = random_treebank(sentences, seed=3, words=[*WHOLE, *SPLIT])
    return Treebank("tiny", tuple(_mirrored(s) if i % 2 else s for i, s in enumerate(bank)))


def _mirrored(sentence: Sentence) -> Sentence:
    heads = tuple(len(sentence) - 1 - head if head >= 0 else -1 for head in reversed(sentence.heads))
    return Sentence(sentence.words[::-1], heads, sentence.relations[::-1])


def words_by_spelling(tokenizer, ids: list[int], words: tuple[str, ...]) -> list[int | None]:
    """The word that each token is a piece of, None for special tokens: tokens laid along the words, byte by byte.

    A token of nothing but a space belongs to the word after it.
    """
    is_bert = isinstance(tokenizer, hf.BertTokenizer)
    letters = [(number, byte) for number, word in enumerate(words) for byte in _spelt(word, is_bert)]
    pieces, position = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in tokenizer.all_special_tokens:
            pieces.append(None)
            continue
        piece = _bytes_of(token, is_bert)
        assert bytes(byte for _, byte in letters[position : position + len(piece)]) == piece
        assert len({number for number, _ in letters[position : position + len(piece)]}) <= 1
        pieces.append(letters[position][0])
        position += len(piece)
    assert position == len(letters)
    return pieces


def _spelt(word: str, is_bert: bool) -> bytes:
    if is_bert:  # lower case, no accents
        word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
    return word.encode()


def _bytes_of(token: str, is_bert: bool) -> bytes:
    """A token's bytes without its spaces."""
    if is_bert:
        return token.removeprefix("##").encode()
    if token.startswith("<0x"):
        return bytes.fromhex(token[3:5])
    if "▁" in token or not all(c in BYTES for c in token):
        return token.replace("▁", "").encode()
    return bytes(BYTES[c] for c in token).replace(b" ", b"")


BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
