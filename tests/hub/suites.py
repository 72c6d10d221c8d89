"""Published checkpoint suites in miniature: their names, revisions and files, with models of a few kilobytes.

Weights go smoothly from one draw at the first step to another at the last, as log(1 + step) goes, so that any two steps
differ and a trajectory through them looks like one.
"""

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load, save

from tests.hub.server import Hub, Repository, declared

PYTHIA_STEPS = (0, *(2**k for k in range(10)), *range(1_000, 144_000, 1_000))
SHORT = (0, 1, 2, 512, 1_000, 143_000)
SENTENCES = (
    "the cat sees the dog that the children feed",
    "a teacher gave her friends some of the old books",
    "she was not sure whether it would rain again",
    "they have seen more of the world than we have",
    "no one knows why the boats were sold",
)
WHOLE = "model.safetensors"
END = "<|endoftext|>"
LAST = 150_000  # a step by which every suite's weights have arrived

State = dict[str, torch.Tensor]


def pythia(hub: Hub, steps: Iterable[int] = SHORT, size: str = "14m") -> Repository:
    """`EleutherAI/pythia-SIZE`: a branch per step, and `main`, which is the last."""
    repository = hub.repository(f"EleutherAI/pythia-{size}")
    for step in sorted(steps):
        state = {key: tensor.half() for key, tensor in weights("pythia", 0, step).items()}
        files = {**cards(repository.name), **config("pythia", torch_dtype="float16"), **fast_tokenizer()}
        weighed = {"model.safetensors": safe(state), "pytorch_model.bin": pickled(state)}
        last = repository.commit({**files, **weighed}, branch=f"step{step}")
    repository.move("main", last)
    return repository


def multiberts(hub: Hub) -> list[Repository]:
    """`google/multiberts-seed_0-step_Sk`: a repository per step, pickles and TensorFlow only, no fast tokenizer."""
    repositories = [hub.repository(f"google/multiberts-seed_0-step_{thousand}k") for thousand in (0, 20, 40, 2_000)]
    for repository, thousand in zip(repositories, (0, 20, 40, 2_000), strict=True):
        weighed = {"pytorch_model.bin": pickled(_tied(weights("multiberts", 0, thousand))), "tf_model.h5": b"\x89HDF"}
        repository.commit({**cards(repository.name), **config("multiberts"), **wordpiece(), **weighed})
    return repositories


def olmo2(
    hub: Hub,
    revisions: Iterable[str] = (
        "stage1-step0-tokens0B",
        "stage1-step10000-tokens21B",
        "stage1-step20000-tokens42B",
        "stage2-ingredient1-step1000-tokens3B",
        "stage2-ingredient2-step1000-tokens3B",
    ),
    name: str = "allenai/OLMo-2-0425-1B",
) -> Repository:
    """OLMo 2: two stages, the second in several ingredients; weights in shards with an index; `main` is the last."""
    repository = hub.repository(name)
    for revision in revisions:
        branch, _, step = revision.rpartition("-tokens")[0].rpartition("-step")
        reached = int(step) + 100_000 * branch.startswith("stage2")
        state = weights("olmo2", int(_digest(branch).hex()[:4], 16) if "ingredient" in branch else 0, reached)
        files = {**cards(name), **config("olmo2"), **fast_tokenizer(), **shards_of(state, 2)}
        weight_map = {key: name for name in shards_of(state, 2) for key in load(files[name])}
        files["model.safetensors.index.json"] = _json({"metadata": {}, "weight_map": weight_map})
        repository.move("main", repository.commit(files, branch=revision))
    return repository


def crfm(hub: Hub) -> Repository:
    """`stanford-crfm/alias-gpt2-small-x21`: every checkpoint a commit on `main`, in no order of steps, with a tag."""
    repository = hub.repository("stanford-crfm/alias-gpt2-small-x21")
    mask = torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril()
    masks = {f"transformer.h.{layer}.attn.bias": mask for layer in (0, 1)}
    for step in sorted((10, 100, 1_000, 20_000, 400_000), key=str):
        files = {**cards(repository.name), **config("crfm"), **slow_tokenizer(), "training_args.bin": pickled({})}
        files["pytorch_model.bin"] = pickled({**_tied(weights("crfm", 21, step)), **masks})
        title = f"checkpoint-{step}"
        repository.tags[title] = repository.commit(files, title=f"{title} contents")
    return repository


def sas(hub: Hub) -> list[Repository]:
    """`angie-chen55/bert-base-seed0-ckpt-N`: a repository per step."""
    repositories = []
    for step in (0, 1_000, 20_000, 100_000):
        repository = hub.repository(f"angie-chen55/bert-base-seed0-ckpt-{step}")
        weighed = {"pytorch_model.bin": pickled(_tied(weights("sas", 0, step)))}
        repository.commit({**cards(repository.name), **config("sas"), **wordpiece(), **weighed})
        repositories.append(repository)
    return repositories


def unpickling_writes(hub: Hub, marker: Path, name: str = "someone/pickle") -> Repository:
    """A model whose pickle, if anybody unpickles it without care, makes the file `marker`."""
    repository = hub.repository(name)
    state = {**weights("pythia", 0, 0), "payload": _Writes(marker)}
    repository.commit({**config("pythia"), **fast_tokenizer(), "pytorch_model.bin": pickled(state)})
    return repository


def importing_writes(hub: Hub, marker: Path, name: str = "someone/remote-code") -> Repository:
    """A model that asks for code of its own to be run; the code, if imported, makes the file `marker`."""
    repository = hub.repository(name)
    code = f"from pathlib import Path\n\nPath({str(marker)!r}).touch()\n".encode()
    automatic = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    settings = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": automatic}
    files = {"config.json": _json(settings), "configuration_own.py": code, "modeling_own.py": code}
    repository.commit({**files, **fast_tokenizer(), "model.safetensors": safe(weights("pythia", 0, 0))})
    return repository


def history(
    hub: Hub,
    name: str = "EleutherAI/pythia-14m",
    steps: Iterable[int] = PYTHIA_STEPS,
    shards: int = 1,
    change: Callable[[int, State], State] = lambda step, state: state,
    same: Mapping[tuple[int, int], int] | None = None,
    branch: str = "step{}",
) -> Repository:
    """A trajectory of about 2 MB a checkpoint, made when it is asked for; `main` is its last step.

    `change`: what is planted in a step's weights. `same`: shards, by step and number, that are those of another step.
    """
    repository = hub.repository(name)
    sizes = {file: len(content) for file, content in shards_of(trajectory(0), shards).items()}

    def shard(step: int, file: str) -> bytes:
        return shards_of(change(step, trajectory(step)), shards)[file]

    for step in steps:
        weighed = {}
        for number, (file, size) in enumerate(sizes.items()):
            origin = (same or {}).get((step, number), step)
            weighed[file] = declared(size, _digest(name, branch, str(origin), file).hex(), partial(shard, origin, file))
        last = repository.commit({"config.json": b"{}\n", "tokenizer.json": b"{}\n", **weighed}, branch.format(step))
    repository.move("main", last)
    return repository


@cache
def _random_state(seed: int) -> State:
    """A new decoder: random matrices, norm weights of ones, biases of zeros."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {"embed_in.weight": (3000, 64), "embed_out.weight": (3000, 64)}
    for layer in range(6):
        shapes = {"query_key_value": (192, 64), "dense": (64, 64), "h_to_4h": (256, 64), "4h_to_h": (64, 256)}
        matrices |= {f"layers.{layer}.{key}.weight": shape for key, shape in shapes.items()}
    state = {key: 0.02 * torch.randn(shape, generator=generator) for key, shape in matrices.items()}
    norms = [f"layers.{layer}.norm" for layer in range(6)] + ["final_norm"]
    state |= {f"{key}.weight": torch.ones(64) for key in norms} | {f"{key}.bias": torch.zeros(64) for key in norms}
    return state


def trajectory(step: int, seed: int = 0) -> State:
    """The weights of a run at a step: from one draw, in half precision, ever more slowly towards another."""
    start, end = _random_state(2 * seed), _random_state(2 * seed + 1)
    share = 0.6 * math.log1p(step) / math.log1p(LAST)
    moved = {key: start[key] + share * (end[key] + 0.02 * (end[key] == start[key])) for key in start}
    return {key: tensor.half() for key, tensor in moved.items()}


# Weights


@cache
def _configs() -> dict:
    """What each suite's models are, at a few kilobytes."""
    import transformers

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = {**size, "vocab_size": 120, "max_position_embeddings": 256}
    decoder = {**bert, "vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "vocab_size": 320,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
    }
    scaled = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
    return {
        "pythia": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**decoder)),
        "multiberts": (transformers.BertForPreTraining, transformers.BertConfig(**bert)),
        "sas": (transformers.BertForMaskedLM, transformers.BertConfig(**bert)),
        "olmo2": (transformers.Olmo2ForCausalLM, transformers.Olmo2Config(**decoder, pad_token_id=1)),
        "crfm": (transformers.GPT2LMHeadModel, transformers.GPT2Config(**gpt2, **scaled)),
    }


@cache
def _saved(kind: str) -> tuple[State, dict]:
    """Weights and configuration of a new model, as transformers saves them."""
    from safetensors.torch import load_file

    architecture, config = _configs()[kind]
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        architecture(config).save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors"), json.loads(Path(folder, "config.json").read_text())


@cache
def _ends(kind: str, seed: int) -> tuple[State, State]:
    """Where a run's weights start and where they go."""
    generator = torch.Generator().manual_seed(int(_digest(kind, str(seed)).hex()[:12], 16))
    fresh = _saved(kind)[0]
    noise = [{key: torch.randn(tensor.shape, generator=generator) for key, tensor in fresh.items()} for _ in range(2)]
    return (
        {key: tensor + 0.02 * noise[0][key] for key, tensor in fresh.items()},
        {key: tensor + 0.2 * noise[1][key] for key, tensor in fresh.items()},
    )


def weights(kind: str, seed: int, step: int) -> State:
    start, end = _ends(kind, seed)
    reached = math.log1p(step) / math.log1p(LAST)
    return {key: torch.lerp(start[key], end[key], reached) for key in start}


def _tied(state: State) -> State:
    """What pickles of that time held twice: output weights, which are the input's."""
    if "transformer.wte.weight" in state:
        return {**state, "lm_head.weight": state["transformer.wte.weight"]}
    twice = {"weight": state["bert.embeddings.word_embeddings.weight"], "bias": state["cls.predictions.bias"]}
    return {**state, **{f"cls.predictions.decoder.{key}": tensor for key, tensor in twice.items()}}


# Files


def safe(state: State) -> bytes:
    return save({key: tensor.contiguous() for key, tensor in state.items()}, {"format": "pt"})


def pickled(content: dict) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def shards_of(state: State, count: int) -> dict[str, bytes]:
    """A model's weights as files, each with every `count`th of its tensors."""
    names = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)] if count > 1 else [WHOLE]
    return {name: safe({key: state[key] for key in sorted(state)[n::count]}) for n, name in enumerate(names)}


def config(kind: str, **changes) -> dict[str, bytes]:
    """`config.json` as of its time, when `dtype` was called `torch_dtype`."""
    saved = {**_saved(kind)[1], "transformers_version": "4.30.0"}
    saved["torch_dtype"] = saved.pop("dtype", "float32")
    return {"config.json": _json({**saved, **changes})}


def cards(name: str) -> dict[str, bytes]:
    attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    return {".gitattributes": attributes.encode(), "README.md": f"# {name}\n".encode()}


@cache
def _bytewise():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END, "<|padding|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def fast_tokenizer() -> dict[str, bytes]:
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    settings = {**special, "add_prefix_space": False, "model_max_length": 64, "tokenizer_class": "GPTNeoXTokenizer"}
    return {
        "tokenizer.json": _bytewise().to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }


def slow_tokenizer() -> dict[str, bytes]:
    """GPT-2's: a vocabulary and its merges."""
    with tempfile.TemporaryDirectory() as folder:
        files = _bytewise().model.save(folder)
        read = {Path(file).name: Path(file).read_bytes() for file in files}
    return {**read, "tokenizer_config.json": _json({"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"})}


def wordpiece() -> dict[str, bytes]:
    """BERT's: a vocabulary, a line each."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({word for sentence in SENTENCES for word in sentence.split() if len(word) > 1})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","]
    vocabulary = [*special, *letters, *("##" + c for c in letters), *words]
    return {"vocab.txt": ("\n".join(vocabulary) + "\n").encode()}


class _Writes:
    """Pickles as an order to make a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def _json(content: Mapping) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _digest(*words: str) -> bytes:
    return hashlib.sha256(" ".join(words).encode()).digest()
