"""Load base models and tokenizers, and check a model before its weights are read."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import patch_environment
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from calibtune.errors import UserError, is_out_of_memory, reason
from calibtune.models.heads import check_places
from calibtune.models.quantized import FOUR_BITS, check_held, four_bit, held_as, keep_exact, mismatched, passed_by
from calibtune.models.sharding import launched_with
from calibtune.models.shares import reading_shares, share_options, split_alike
from calibtune.reading import BOM, check_folder, checked, read_text
from calibtune.spec import ModelSpec
from harness_ext.encoding import appended

#: Names under which configurations store the context length, in the harness's order.
LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
#: Options of from_pretrained that report mismatched shapes as missing weights are reported, for :func:`check_whole`.
REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
#: No model has as many layers, and transformers makes each before it looks for weights.
MOST_LAYERS = 10_000


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the model's tokenizer, with the spec's chat template if it names one.

    Raises:
        UserError: The model does not exist, the template file cannot be read, or the spec asks for
            a chat template or a beginning-of-text token and there is none.
    """
    tokenizer = _from(
        AutoTokenizer, spec, **({} if spec.add_bos_token is None else {"add_bos_token": spec.add_bos_token})
    )
    with explained(spec.name):
        tokenizer("A")  # some damage shows at the first use
    if spec.add_bos_token and tokenizer("A")["input_ids"][:1] != [tokenizer.bos_token_id]:
        raise UserError(
            f"--add-bos-token: the tokenizer of {spec.name} puts no token for the beginning of a text before it "
            f"(bos_token is {tokenizer.bos_token!r}); leave it out"
        )
    if spec.chat_template is not None:
        tokenizer.chat_template = read_template(spec.chat_template)
    if spec.apply_chat_template and not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {spec.name} has no chat template; give one with --chat-template FILE, or leave out "
            "--apply-chat-template"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(spec: ModelSpec) -> Any:
    """Load the model's configuration.

    Raises:
        UserError: The model does not exist, it is not a causal language model, or it cannot be quantized as the spec
            says.
    """
    config = _from(AutoConfig, spec)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(f"the configuration of {spec.name} gives it {layers} layers; copy the model again")
    names = checked(config.architectures or [], list[str], f"the configuration of {spec.name}, architectures")
    heads = ("MaskedLM", "Classification", "Answering", "Model")
    other = [name for name in names if name.endswith(heads) and not name.endswith("LMHeadModel")]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    # BERT says so of itself, and so does GPT-NeoX, which was saved as the decoder that it is.
    encoder = getattr(config, "is_decoder", None) is False and getattr(known, "__name__", None) not in names
    if config.is_encoder_decoder or other or (not remote and (encoder or known is None)):
        raise UserError(
            f"{spec.name} is a {', '.join(names) or config.model_type}, not a causal language model; give a decoder "
            "that generates text, such as a ...ForCausalLM"
        )
    check_held(spec, config)
    if held_as(config) in (*FOUR_BITS, "int8"):
        check_packages(["bitsandbytes"])
    return config


def context_length(config: Any, tokenizer: Any) -> int:
    """Return the model's context length in tokens.

    Raises:
        UserError: The configuration gives a length below one, as XLNet's does, whose tokenizer is what stands in the
            way of letters.
    """
    text = config.get_text_config()
    lengths = [getattr(text, name) for name in LENGTHS if getattr(text, name, None)]
    if lengths and lengths[0] < 1:
        if added := appended(tokenizer):
            raise UserError(
                f"the tokenizer of this {config.model_type} model appends {' '.join(added)} to every text, so no "
                "letter is a prompt's next token; give a causal language model"
            )
        raise UserError(
            f"the configuration of this {config.model_type} model gives its context as {lengths[0]} tokens, so "
            "nobody knows what fits; give a causal language model with a context of its own"
        )
    return int(lengths[0] if lengths else min(tokenizer.model_max_length, 2048))


def load_base(spec: ModelSpec, dtype: torch.dtype | None = None, in_shares: bool = False) -> Any:
    """Load the base model onto its device, quantized if the spec says so.

    Args:
        spec: The model.
        dtype: Data type of the weights; the spec's precision by default.
        in_shares: Let each process read its own share alone where FSDP splits the model, see
            :func:`calibtune.models.shares.share_options`; then the model is split when it is returned.

    Raises:
        UserError: The model cannot be loaded or quantized, or some of its weights are missing.
    """
    dtype = dtype or weights_dtype(spec)
    options = share_options(spec, load_config(spec)) if in_shares else {}
    model, info = _load(spec, dtype, options)
    if spec.quantization == "nf4":
        if not (held := four_bit(model)):
            raise UserError(
                f"--quantization nf4: bitsandbytes knows no layer of a {type(model).__name__}, so nothing of "
                f"{spec.name} would be held in 4 bits; leave it out"
            )
        if (unfit := held & passed_by(model)) and held_as(load_config(spec)) is None:
            known = model.hf_quantizer.modules_to_not_convert
            del model
            model, info = _load(spec, dtype, {}, [*known, *unfit])
    elif options:
        model = split_alike(model)
    else:
        model = model.to(device(spec.device))
    check_loaded(model, info, spec.name)
    return model


def _load(
    spec: ModelSpec, dtype: torch.dtype, options: Mapping[str, Any], unquantized: Collection[str] | None = None
) -> tuple[Any, Any]:
    """Return a model and transformers' loading info; ``unquantized`` names layers that are not to be quantized."""
    options = {"dtype": dtype, "use_safetensors": True, **REPORTED, **options}
    if spec.quantization == "nf4":
        options["quantization_config"] = nf4(dtype, unquantized)
        options["device_map"] = {"": device(spec.device)}
    # All processes score the base model before FSDP shards it. With RAM-efficient loading only the
    # first process has weights until then (transformers before 5.23).
    in_shares = reading_shares() if "distributed_config" in options else contextlib.nullcontext()
    with patch_environment(fsdp_cpu_ram_efficient_loading="false"), in_shares:
        found: tuple[Any, Any] = _from(AutoModelForCausalLM, spec, **options)
    return found


def check_loaded(model: Any, info: Mapping[str, Any], name: str) -> None:
    """Refuse a model that would give wrong answers, and keep its 4-bit layers from doing so.

    Args:
        model: Loaded, on its device.
        info: transformers' loading info.
        name: For the message.

    Raises:
        UserError: Weights are missing, or in 4 bits that the model's code cannot read; or the model attends to later
            tokens.
    """
    # Of weights that it packs, transformers does not compare the shapes.
    check_whole({**info, "mismatched_keys": {*info["mismatched_keys"], *mismatched(model)}}, name)
    if unfit := four_bit(model) & passed_by(model):
        raise UserError(
            f"--model {name} holds {min(unfit)} in 4 bits, and the code of a {type(model).__name__} cannot read it so; "
            "give the original model"
        )
    keep_exact(model)
    check_causal(model, name)


def check_whole(info: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint without all of the model's weights; transformers goes on with random values in their place.

    Args:
        info: transformers' loading info.
        name: For the message.

    Raises:
        UserError: With the first weight that is missing or of another shape.
    """
    if other := sorted(info["mismatched_keys"]):
        weight, found, wanted = other[0]
        raise UserError(
            f"--model {name} has {len(other)} weights of other shapes than its config.json says, such as "
            f"{weight}, {list(found)} instead of {list(wanted)}; copy the model again"
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"--model {name} lacks {len(missing)} weights that its config.json requires, such as {missing[0]}; "
            "copy the model again"
        )


def check_causal(model: Any, name: str) -> None:
    """Refuse a model whose prediction depends on later tokens, such as BERT loaded with a language model's head.

    Args:
        model: Loaded, on its device.
        name: For the message.

    Raises:
        UserError: The logits after the first tokens change with later ones.
    """
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(8, device=next(model.parameters()).device).remainder(size)[None]
    other = ids.clone()
    other[0, 4:] = (ids[0, 4:] + 7) % size
    training = model.training
    with torch.no_grad():
        logits = [model.eval()(each, use_cache=False).logits for each in (ids, other)]
    model.train(training)
    check_places(logits[0], ids)
    first, second = (each[0, :4].float() for each in logits)
    # Shares of the logits' own spread: random and tiny models have small logits.
    apart = (first - second).abs().max() / first.std()
    # Where inputs are quantized too, as in int8, the largest of all tokens says how.
    coarse = held_as(model.config) not in (None, *FOUR_BITS)
    if apart > (0.2 if coarse else 1e-2 if model.dtype == torch.bfloat16 else 1e-4):
        raise UserError(
            f"--model {name} is a {type(model).__name__} that attends to later tokens, not a causal language model; "
            "give a decoder that generates text, such as a ...ForCausalLM"
        )


def nf4(dtype: torch.dtype, unquantized: Collection[str] | None = None) -> BitsAndBytesConfig:
    """Return the configuration of QLoRA's 4-bit NormalFloat with double quantization.

    Args:
        dtype: Of the forward pass.
        unquantized: Layers to leave as they are; None: the output layer, as transformers does.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        # FSDP splits no integers; each process would keep all of the base.
        bnb_4bit_quant_storage=torch.bfloat16 if launched_with("FSDP") else torch.uint8,
        llm_int8_skip_modules=None if unquantized is None else list(unquantized),
    )


def device(name: str | None) -> torch.device:
    """Return the device of that name, by default this process's accelerator or the CPU."""
    return torch.device(name) if name else PartialState().device


def resolved_precision(spec: ModelSpec) -> Literal["bf16", "fp32"]:
    """Return the precision that "auto" means on the spec's device: bf16 where an accelerator has it, else fp32.

    CPUs compute bfloat16 several times more slowly than float32.
    """
    if spec.precision != "auto":
        return spec.precision
    kind = device(spec.device).type
    has_it = torch.cuda.is_bf16_supported() if kind == "cuda" else kind not in ("cpu", "mps")
    return "bf16" if has_it else "fp32"


def weights_dtype(spec: ModelSpec) -> torch.dtype:
    """Return the type of the model's weights."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[resolved_precision(spec)]


def found_device() -> str:
    """Return this process's accelerator or "cpu"; the hf backend defaults to CUDA even without one."""
    return PartialState().device.type


def read_template(path: str) -> str:
    """Read a file with a chat template.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return read_text(Path(path), "give a file with a Jinja template")
    except UserError as error:
        raise UserError(f"--chat-template {error}") from None


def check_spec(spec: ModelSpec) -> None:
    """Check that the device exists, and that bitsandbytes is installed for 4 bits.

    Raises:
        UserError: The device cannot be used, or bitsandbytes is missing.
    """
    if spec.device is not None:
        try:
            torch.empty(0, device=spec.device)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise UserError(
                f"--device {spec.device} cannot be used here ({said}); leave it out or give another device"
            ) from error
    if spec.quantization == "nf4":
        check_packages(["bitsandbytes"])


def check_packages(names: Collection[str]) -> None:
    """Check that packages are installed.

    Raises:
        UserError: Some are missing; the message names them.
    """
    missing = sorted(name for name in names if importlib.util.find_spec(name) is None)
    if missing:
        raise UserError(f"this command needs {', '.join(missing)}, not installed here; pip install {' '.join(missing)}")


def _from(loader: Any, spec: ModelSpec, **options: Any) -> Any:
    name = spec.name
    # transformers would take such a name for a hub id and complain about its characters.
    if (Path(name).is_absolute() or name.startswith((".", "~"))) and not Path(name).exists():
        raise UserError(f"--model {name} does not exist; give a folder that transformers loads, or a hub id")
    options |= {"trust_remote_code": spec.trust_remote_code}
    if spec.revision is not None:
        options["revision"] = spec.revision
    with explained(name):
        return loader.from_pretrained(name, **options)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Raise one sentence for whatever transformers and tokenizers raise on a model's files.

    Args:
        name: The model's.

    Raises:
        UserError: With the error.
    """
    if os.path.isdir(name):
        check_folder(Path(name), "copy the model again")
    try:
        yield
    except UserError:
        raise
    # A panic of Rust's is not even an Exception.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if is_out_of_memory(error):
            raise
        raise not_loaded(name, error) from error


def not_loaded(name: str, error: BaseException, trust: str = "--trust-remote-code") -> UserError:
    """Return the error for a model that transformers does not load; ``trust`` is the flag that lets its code run."""
    if "trust_remote_code" in str(error):
        return UserError(f"--model {name} brings code of its own; give {trust} to run it")
    if Path(name, "adapter_config.json").is_file():
        return UserError(f"--model {name} is an adapter; give its base as --model, and {name} as --artifact")
    check_marks(Path(name))
    return UserError(
        f"--model {name} cannot be loaded: {reason(error)}; give a hub id, or a folder with config.json, tokenizer and "
        "*.safetensors"
    )


def check_marks(folder: Path) -> None:
    """Refuse JSON files that begin with a byte order mark, which transformers and PEFT take for no JSON.

    Raises:
        UserError: With the first such file.
    """
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            if file.read(len(BOM)) == BOM:
                raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
