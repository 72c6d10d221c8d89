"""Tiny random models with a tokenizer that splits words, and stand-ins for checkpoints and runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lmdynamics.corpora.treebanks import Sentence, Treebank

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WHOLE = ["the", "dog", "cat", "sees", "a", "old", "man", ".", "runs", "quickly", "and"]
PIECES = ["un", "##believ", "##able", "##s", "walk", "##ing", "##ed", "play"]


def wordpiece(*, special: bool = True) -> hf.PreTrainedTokenizerFast:
    """`unbelievable` is three pieces, `walking` two; with or without [CLS] and [SEP] around a sentence."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WHOLE, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_model(kind: str = "bert", attention: str = "eager", positions: int = 64, seed: int = 0):
    """A random model with sharp attention: ties and near-ties would make an exact comparison a matter of rounding."""
    size = {
        "vocab_size": len(SPECIAL) + len(WHOLE) + len(PIECES),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "initializer_range": 0.3,
    }
    configuration, of_kind = {
        "bert": (hf.BertConfig, hf.AutoModelForMaskedLM),
        "roberta": (hf.RobertaConfig, hf.AutoModelForMaskedLM),
        "llama": (hf.LlamaConfig, hf.AutoModelForCausalLM),
    }[kind]
    torch.manual_seed(seed)
    return of_kind.from_config(configuration(**size), attn_implementation=attention).eval()


@dataclass(frozen=True)
class StandIn:
    """What measurements see of a checkpoint."""

    kind: str = "bert"
    special: bool = True
    step: int = 0
    seed: int = 0
    positions: int = 64
    tokenizer: hf.PreTrainedTokenizerFast = field(default_factory=wordpiece, compare=False)

    @property
    def objective(self) -> str:
        return "clm" if self.kind == "llama" else "mlm"

    @property
    def run_name(self) -> str:
        return "a stand-in"

    @property
    def content_hash(self) -> str:
        return f"{self.kind}-{self.special}-{self.step}-{self.seed}-{self.positions}"

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        return tiny_model(self.kind, attention, self.positions, self.seed).to(device)


@dataclass(frozen=True)
class StandInRun:
    """What `trace` sees of a run."""

    steps: tuple[int, ...]
    recipe = None

    def __getitem__(self, step: int) -> StandIn:
        return StandIn(step=step, seed=step)


@pytest.fixture
def treebank() -> Treebank:
    return random_treebank(60, seed=0)


WORDS = (*WHOLE, "unbelievable", "walking", "walked", "plays", "unbelievables")


def random_treebank(n: int, seed: int, words: Sequence[str] = WORDS) -> Treebank:
    """Random words, whole (as many as WHOLE) and split, under random trees."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    sentences = []
    for number in range(n):
        length = 1 + draw(9)
        # every third sentence has no split word: these go another way
        chosen = tuple(words[draw(len(WHOLE) if number % 3 == 0 else len(words))] for _ in range(length))
        heads = tuple(draw(i) if i else -1 for i in range(length))
        relations = tuple("root" if head < 0 else ("nsubj", "obj", "det", "punct")[draw(4)] for head in heads)
        sentences.append(Sentence(chosen, heads, relations))
    return Treebank("random", tuple(sentences))
