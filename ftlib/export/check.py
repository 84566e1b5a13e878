"""Is an export the model that it should be? A folder's files are looked at first, then it is loaded and asked."""

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.dataset import harmony
from ftlib.errors import FtlibError
from ftlib.export.serve import Server
from ftlib.session import manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = [
    {"role": "system", "content": "reasoning language: French"},
    {"role": "user", "content": "What is the capital of Australia?"},
]
WHOLE = [*PROBE, {"role": "assistant", "thinking": "Une question facile.", "content": "It is Canberra."}]
NEW_TOKENS = 32
# How far the typical token's logits may lie from those of the exported model: in float32 a share of what the adapter
# moved; where rounding is coarser, as in bfloat16 and MXFP4, a share of the largest logit, and less than to the base.
TOLERANCE, COARSE_TOLERANCE = 0.1, 0.15
NEARLY = 0.7  # nats: half as likely
DTYPES = ("float32", "bfloat16", "float16")
REPAIR = "save it with `save_pretrained(folder, save_original_format=False)`"


@dataclass(frozen=True)
class Answers:
    """What a model says to a probe: the logits of the prompt [tokens, vocabulary], and a greedy reply.

    And the tokens of the prompt, and of a conversation with its reply, as the tokenizer writes them.
    """

    written: list[list[int]]
    logits: "torch.Tensor"
    reply: list[int]


def ask(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Answers:
    """Ask a model the probe, greedily."""
    import torch

    inputs: Any = tokenizer.apply_chat_template(PROBE, add_generation_prompt=True, return_tensors="pt")
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().cpu()
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
    return Answers(_written(tokenizer), logits, output[0, inputs["input_ids"].shape[1] :].tolist())


def _written(tokenizer: Any) -> list[list[int]]:
    prompt = tokenizer.apply_chat_template(PROBE, add_generation_prompt=True, return_dict=False)
    return [list(prompt), list(tokenizer.apply_chat_template(WHOLE, return_dict=False))]


def distance(one: Answers, other: Answers) -> float:
    """How far the logits of a typical token lie apart."""
    return (one.logits - other.logits).abs().amax(dim=-1).median().item()


def folder(path: Path, expected: Answers, untrained: Answers, date: str) -> Answers:
    """Check a folder against the answers of the model that was exported, and return its own.

    Args:
        path: the exported folder.
        expected: what `ask` found, with the tokenizer of the base and its template pinned to `date`.
        untrained: the same of the base without its adapter.
        date: the day that the template writes.

    Raises:
        FtlibError: names what is wrong with the folder, and how to fix it.
    """
    files(path)
    model, tokenizer = load(path)
    _check_tokenizer(path, tokenizer, expected, date)
    found, is_exact = ask(model, tokenizer), str(model.dtype) == "torch.float32" and not is_packed(path)
    apart, from_base = distance(found, expected), distance(found, untrained)
    if is_exact:
        tolerance = TOLERANCE * distance(untrained, expected)
    else:
        tolerance = min(COARSE_TOLERANCE * expected.logits.abs().max().item(), from_base)
    if not apart <= tolerance or (is_exact and found.reply != expected.reply):  # so that NaN is refused, too
        told = f"the typical token's logits lie {apart:.2g} apart, expected at most {tolerance:.2g}"
        told += f", and {from_base:.2g} from those of the base"
        raise FtlibError(f"{path.name}/ answers differently from the model that was exported: {told}; export it again")
    return found


def gguf(file: Path, expected: Answers, tokenizer: Any) -> None:
    """Check a GGUF file: llama.cpp has to load it, and to begin its reply to the probe as expected.

    Rounding changes words later on, so only a quarter of the reply is compared; and it decides between words that are
    nearly as likely, so such a difference counts for nothing.

    Args:
        file: the GGUF file.
        expected: what `ask` found in the folder that the file is converted from, with the tokenizer given here.
        tokenizer: writes the probe.

    Raises:
        FtlibError: llama.cpp cannot load the file, or it answers differently.
    """
    from openai import OpenAI

    prompt, server = tokenizer.decode(expected.written[0]), Server(file)
    try:
        client = OpenAI(base_url=server.base_url, api_key=server.api_key, timeout=None, max_retries=0)
        asked: Any = {"max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 5}
        (choice,) = client.completions.create(model="local", prompt=prompt, **asked).choices
    finally:
        server.close()
    # llama.cpp may leave out the markers.
    found, wanted = (re.sub(harmony.MARKERS, "", text) for text in (choice.text, tokenizer.decode(expected.reply)))
    if _alike(found, wanted) < len(wanted) // 4 and not _part_at_a_tie(choice.logprobs, expected.reply):
        told = f"its reply begins {found[:40]!r}, expected {wanted[:40]!r}"
        raise FtlibError(f"{file.name} answers differently from the folder that it was converted from: {told}")


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _part_at_a_tie(told: Any, reply: list[int]) -> bool:
    """Whether the token at which llama.cpp leaves a reply is nearly as likely there, so that rounding decides."""
    for step, token in zip(told.content, reply, strict=False):
        if step["id"] != token:
            likely = {each["id"]: each["logprob"] for each in step["top_logprobs"]}
            return token in likely and max(likely.values()) - likely[token] < NEARLY
    return True


def files(path: Path) -> None:
    """Look at the files of a folder, without loading a tensor: is this one whole model, written as its config says?"""
    if (path / "adapter_config.json").is_file():
        raise FtlibError(f"{path.name}/ holds an adapter, expected a merged model; call `merge_and_unload` first")
    config = _json(path / "config.json")
    if (path / manifest.NAME).is_file():
        manifest.verify(path)
    dtypes = _tensors(path)
    packed = {name for name in dtypes if name.endswith("_blocks")}
    dense = sorted(name for name in packed if dtypes[name] != "U8")
    if dense:
        found = f"{dense[0]} holds {dtypes[dense[0]]}, which is not packed, under the name of a packed tensor"
        raise FtlibError(f"{path.name}/: {found}: loaded again, the experts would be random; {REPAIR}")
    if packed and "quantization_config" not in config:
        raise FtlibError(f"{path.name}/config.json lacks quantization_config, and the experts are packed; {REPAIR}")
    if "quantization_config" in config and not packed:
        found = "config.json has quantization_config, and no tensor is packed"
        raise FtlibError(f"{path.name}/: {found}: servers would look for packed experts; remove it there, or {REPAIR}")
    if lora := [name for name in dtypes if "lora_" in name]:
        raise FtlibError(f"{path.name}/ holds adapter tensors such as {lora[0]}; call `merge_and_unload` before saving")


def is_packed(path: Path) -> bool:
    """Whether a folder's experts are packed in MXFP4."""
    return any(name.endswith("_blocks") for name in _tensors(path))


def load(path: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a folder as a person would, onto the CPU; an FtlibError names a missing or misshapen tensor."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import Mxfp4Config

    quantization = {"quantization_config": Mxfp4Config(dequantize=True)} if is_packed(path) else {}
    config = _json(path / "config.json")
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    if named not in DTYPES:
        raise FtlibError(f"{path.name}/config.json: found dtype {named!r}, expected one of {', '.join(DTYPES)}")
    dtype = getattr(torch, named)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        found: Any = AutoModelForCausalLM.from_pretrained(
            path,
            attn_implementation="eager",
            experts_implementation="grouped_mm",
            dtype=dtype,
            device_map="cpu",
            use_safetensors=True,
            output_loading_info=True,
            **quantization,
        )
    except Exception as error:  # theirs are of many kinds
        line = " ".join(str(error).split())[:200]
        raise FtlibError(f"{path.name}/ cannot be loaded ({line}); export it again") from None
    model, loaded = found
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[kind]:
            told = f"{kind.replace('_keys', '')} tensors, such as {sorted(map(str, loaded[kind]))[0]}"
            raise FtlibError(f"{path.name}/ has {len(loaded[kind])} {told}; export it again")
    _lay_out(model)
    return model, tokenizer


def _lay_out(model: Any) -> None:
    """Store each expert's matrix column by column, without changing it.

    torch multiplies by it so; otherwise a CPU without AVX-512, as beside an A100, takes 15 times as long in bfloat16.
    """
    for name, weight in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")) and weight.dim() == 3:
            weight.data = weight.data.mT.contiguous().mT


def _check_tokenizer(path: Path, tokenizer: Any, expected: Answers, date: str) -> None:
    tokenizer.chat_template = harmony.pin_date(tokenizer.chat_template or "", date)
    if _written(tokenizer) != expected.written:
        told = "its tokenizer or chat template writes a conversation in another way than the model learned"
        raise FtlibError(f"{path.name}/: {told}; save the base's tokenizer there")


def _tensors(path: Path) -> dict[str, str]:
    """The dtypes of all tensors by name, from the headers of the files."""
    from safetensors import SafetensorError, safe_open

    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise FtlibError(f"found no .safetensors file in {path.name}/, expected a model's; export it again")
    dtypes: dict[str, str] = {}
    for shard in shards:
        try:
            with safe_open(shard, "pt") as file:
                dtypes |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise FtlibError(f"{path.name}/{shard.name} is not whole ({error}); export it again") from None
    index = path / "model.safetensors.index.json"
    listed = _json(index).get("weight_map") if index.is_file() else {}
    if not isinstance(listed, dict):
        raise FtlibError(f"{path.name}/{index.name} has no weight_map, expected each tensor's file; export it again")
    if absent := sorted(set(listed) - set(dtypes)):
        raise FtlibError(f"{path.name}/ lacks {absent[0]}, which {index.name} lists; export it again")
    return dtypes


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise FtlibError(f"{file.parent.name}/{file.name} cannot be read ({type(error).__name__})") from None
