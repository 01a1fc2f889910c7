"""Write and read an artifact's manifest: model, recipe, documents, metrics and versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from calibtune import __version__
from calibtune.errors import UserError
from calibtune.files import write_json
from calibtune.reading import MOST_LISTED, Record, read_json
from calibtune.recipe import recorded
from calibtune.spec import ModelSpec
from calibtune.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from calibtune.data.seen import Seen
    from harness_ext.binning import FloatArray
    from harness_ext.orders import Orders

logger = logging.getLogger(__name__)

MANIFEST = "calibtune.json"
#: The recipe of an unfinished fit; and PEFT's own description of an adapter.
STARTED, ADAPTER = "started.json", "adapter_config.json"
#: PEFT's types that put tokens before the prompt, which is then no longer the task's.
PROMPT_TYPES = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
)
Kind = Literal["adapter", "model", "temperature"]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "lm_eval", "numpy", "scipy")


class FittedTemperature(TypedDict):
    """Describe a fitted temperature, as ``temperature.json`` does."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)  # type: ignore[misc]

    temperature: Annotated[float, Field(gt=0)]
    #: Both ends of its 95 % interval.
    low: float
    high: float
    objective: str
    #: Questions fitted on.
    questions: int
    warnings: list[str]


@dataclass(frozen=True)
class Artifact:
    """Describe a finished artifact; its fields are the manifest's keys, but for its folder.

    An artifact can be given wherever its folder can.
    """

    __pydantic_config__ = ConfigDict(strict=True)

    #: "adapter" (PEFT), "model" (full weights) or "temperature" (T of a base model or an adapter).
    kind: Kind
    method: str
    model: str
    #: Commit of the base model on the hub; None for a local folder.
    revision: str | None
    tasks: tuple[str, ...]
    seed: int
    recipe: dict[str, Any] = field(repr=False)
    #: Keys of the questions by role, "train" and "held_out"; see :class:`calibtune.data.seen.Marks`.
    documents: dict[str, list[str]] = field(repr=False)
    #: Metrics on the held-out questions before and after the fit, by the harness's names, and p-values of "calibrated".
    before: dict[str, float]
    after: dict[str, float]
    versions: dict[str, str] = field(repr=False)
    seconds: float
    peak_memory_gib: float | None
    #: The fitted temperature; None for other methods.
    temperature: FittedTemperature | None = None
    #: What the weights of another fit's adapter were scaled by; None for other methods.
    strength: float | None = None
    #: Of the base model's weights; see :mod:`calibtune.models.fingerprint`. None where they were not at hand.
    fingerprint: str | None = None
    #: Sketches of the questions by role, which tell near copies; artifacts of version 0.1.0 have none.
    sketches: dict[str, str] = field(default_factory=dict, repr=False)
    #: Bins of the held-out questions "before" and "after": count, accuracy and mean confidence of each, 0 where empty.
    reliability: dict[str, list[list[float]]] = field(default_factory=dict, repr=False)
    #: How the base model's own files hold its weights, such as "nf4" or "gptq"; None: they are not quantized.
    base_quantization: str | None = None
    #: Where it lies; artifacts move, so that the manifest does not say it.
    folder: Path | None = field(default=None, compare=False)

    def __fspath__(self) -> str:
        if self.folder is None:
            raise UserError("this artifact lies in no folder; give one that `fit` or `load` returned")
        return str(self.folder)

    def record(self) -> dict[str, Any]:
        """Return what the manifest holds."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return values

    def probs(self, log_probs: ArrayLike) -> FloatArray:
        """Apply the fitted temperature to what its model says of the letters.

        Args:
            log_probs: Log-probabilities of the letters, shape (N, K), NaN where a question has fewer letters. Where the
                temperature was fitted in several orders of the options: of the options, averaged.

        Returns:
            Probabilities, shape (N, K), rows summing to 1, NaN kept.

        Raises:
            UserError: The artifact is no temperature.
            UserError: See :func:`harness_ext.inputs.checked_log_probs`.
        """
        import numpy as np

        from harness_ext.calibration import letter_log_softmax
        from harness_ext.inputs import checked_log_probs

        if self.temperature is None:
            raise UserError(
                f"{self.folder or 'this artifact'} is a trained {self.kind}, which no arithmetic on another model's "
                "log-probabilities stands for; evaluate it with calibtune.evaluate(artifact=...) and read its answers "
                "with calibtune.load_samples"
            )
        return np.exp(letter_log_softmax(checked_log_probs(log_probs)[0], self.temperature["temperature"]))

    def score(self, model: Any, tokenizer: Any, question: str, choices: Sequence[str]) -> FloatArray:
        """Ask one question with calibtune's prompt, and return the model's probability of each option.

        Args:
            model: Loaded model to ask: of a temperature its base (with the adapter that it was fitted on), of an
                adapter the PEFT model, else the artifact's own.
            tokenizer: The model's tokenizer.
            question: Text of the question.
            choices: Texts of its 2 to 26 options.

        Returns:
            Probabilities, shape (K,), summing to 1; scaled by T where the artifact is a temperature, and averaged over
            the orders of the options that it was fitted on.

        Raises:
            UserError: The question cannot be asked by letter, or the prompt does not fit the model's context.
        """
        import numpy as np

        from calibtune.data.encoder import Encoder
        from calibtune.data.examples import Prompts, in_orders
        from calibtune.data.letter_tasks import one_question
        from calibtune.data.tokens import PAD, tokenize
        from calibtune.models.loading import context_length
        from calibtune.models.scores import score
        from harness_ext.calibration import letter_log_softmax
        from harness_ext.orders import averages

        task, encoder = one_question(question, choices), Encoder(tokenizer, self.spec)
        example = Prompts(task, encoder, self.spec.apply_chat_template).example(task.eval_docs[0])
        rows = tokenize(in_orders(example, self.orders), encoder, context_length(model.config, tokenizer))
        found = averages(score(model, rows, PAD, 1), [len(choices)], self.orders)
        temperature = self.temperature["temperature"] if self.temperature else 1.0
        probabilities: FloatArray = np.exp(letter_log_softmax(found, temperature))[0]
        return probabilities

    @property
    def spec(self) -> ModelSpec:
        """Return the base model as the fit loaded it, but without trust in remote code.

        A manifest can come from someone else, so only the present user may grant that trust.
        """
        names = {item.name for item in dataclasses.fields(ModelSpec)} - {"name", "revision", "trust_remote_code"}
        kept = {name: self.recipe[name] for name in names if name in self.recipe}
        return ModelSpec(name=self.model, revision=self.revision, **kept)

    def seen(self, *roles: str) -> Seen:
        """Return the questions that it was fitted on, of some roles or of all.

        Raises:
            UserError: The manifest is damaged.
        """
        from calibtune.data.seen import Seen

        chosen = [role for role in self.documents if not roles or role in roles]
        sketches = [self.sketches[role] for role in chosen if role in self.sketches]
        return Seen.of([self.documents[role] for role in chosen], sketches, self.folder)

    @property
    def orders(self) -> Orders:
        """Return in how many orders of its options a question is asked where the temperature applies."""
        orders: Orders = self.recipe.get("orders", 1) if self.temperature else 1
        return orders

    @property
    def foreign(self) -> bool:
        """Return whether another program trained it, so that nothing is known of its questions and prompts."""
        return not self.recipe

    @property
    def adapter(self) -> str | None:
        """Return the folder of the adapter that a temperature was fitted on, or None.

        One that lies in the temperature's own folder moves with it.
        """
        own = self.own_adapter
        given: str | None = self.recipe.get("artifact") if self.kind == "temperature" else None
        return given if own is None else str(own)

    @property
    def own_adapter(self) -> Path | None:
        """Return the adapter below a temperature that lies in the temperature's folder, or None."""
        name = self.kind == "temperature" and self.folder and self.recipe.get("artifact")
        own = self.folder / Path(name).name if name and self.folder else None
        return own if own is not None and (own / ADAPTER).is_file() else None


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest, or PEFT's configuration of an adapter that another program trained.

    Raises:
        UserError: The folder has neither, or the manifest lacks keys or has some of another type; or see
            :func:`foreign_adapter`.
    """
    if (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in (MANIFEST, STARTED)):
        return foreign_adapter(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}, so it is no finished artifact; finish the fit by running the same command "
            "with --resume, or give another folder"
        )
    cure = "another version of calibtune wrote it, or it was changed, so fit again with this version"
    found = read_json(folder / MANIFEST, Artifact, cure, MOST_LISTED)
    ends = {f"{name[:-4]}_high" for name in found.after if name.endswith("_low")}
    lacking = ["tasks"] * (not found.tasks) + [
        *({"train", "held_out"} - found.documents.keys()),
        *(ends - found.after.keys()),
    ]
    if lacking := sorted([*lacking, *(found.after.keys() - found.before.keys())]):
        raise UserError(f"{folder / MANIFEST} lacks {', '.join(lacking):.300}; {cure}")
    return dataclasses.replace(found, recipe=recorded(found.recipe, str(folder / MANIFEST)), folder=folder)


class Foreign(Record):
    """Hold what PEFT's configuration says of an adapter."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


def foreign_adapter(folder: Path) -> Artifact:
    """Read an adapter that another program trained.

    Raises:
        UserError: It puts tokens before the prompt, or is not for a causal language model.
    """
    config = read_json(folder / ADAPTER, Foreign, "copy the adapter again")
    kind, task = config.peft_type, config.task_type
    if kind in PROMPT_TYPES:
        raise UserError(
            f"{folder} is a {kind} adapter, which puts tokens of its own before the task's prompt; give "
            "an adapter of the weights, such as LORA"
        )
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{folder} is an adapter for {task}, not for a causal language model; give one for CAUSAL_LM")
    nothing: dict[str, Any] = {name: {} for name in ("recipe", "before", "after", "versions")}
    return Artifact(
        kind="adapter",
        method=str(kind).lower(),
        model=config.base_model_name_or_path or "",
        revision=config.revision,
        tasks=(),
        seed=0,
        documents={"train": []},
        seconds=0.0,
        peak_memory_gib=None,
        folder=folder,
        **nothing,
    )


def write_manifest(artifact: Artifact, folder: Path) -> None:
    """Write an artifact's manifest; write it last, because it marks the artifact as finished."""
    write_json(folder / MANIFEST, {"calibtune": __version__, **artifact.record()})


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that a fit's results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def base_model(model: str | None, artifact: Artifact | None) -> str:
    """Return the base model to load: ``model`` if given, else the artifact's.

    Whether another folder holds the same model is told by its weights; see
    :func:`calibtune.models.fingerprint.check_fingerprint`.

    Raises:
        UserError: Neither is given or the artifact's is not here, or the artifact has no fingerprint and was fitted on
            a base model of another name.
    """
    if artifact is None or not artifact.model:
        if not model:
            raise UserError("--model is missing; give a hub id or a folder")
        return model
    if not model and Path(artifact.model).is_absolute() and not Path(artifact.model).is_dir():
        raise UserError(
            f"{artifact.folder} was fitted on {artifact.model}, which is not here; give its place with --model BASE "
            f"--artifact {shlex.quote(str(artifact.folder))}"
        )
    # Other programs name a base as it was called where they ran.
    if (
        model
        and not artifact.foreign
        and artifact.fingerprint is None
        and Path(model).name != Path(artifact.model).name
    ):
        raise UserError(
            f"the artifact was fitted on {artifact.model}, not on {model}; give --model "
            f"{shlex.quote(artifact.model)}, or an artifact fitted on {model}"
        )
    return model or artifact.model


def show_base(artifact: Artifact) -> None:
    """Log the base model and the adapter that a manifest names, before they are loaded: it can be someone else's."""
    adapter = f" and the adapter {visible(artifact.adapter)}" if artifact.adapter else ""
    logger.info("%s names the base model %s%s; loading", artifact.folder, visible(artifact.model), adapter)


def tokenizer_folder(artifact: Artifact | None) -> Path | None:
    """Return the folder whose tokenizer stands for the base model's, if any.

    A fit with a chat template of its own has a copy of the tokenizer with it. An adapter of another program comes with
    the template that it was trained on. A temperature fitted on a samples file never needs one.
    """
    if artifact is None or artifact.recipe.get("samples"):
        return None
    if artifact.recipe.get("chat_template"):
        return artifact.folder
    adapter = artifact.folder if artifact.kind == "adapter" else artifact.adapter and Path(artifact.adapter)
    if not adapter or (adapter / MANIFEST).is_file() or not (adapter / "tokenizer_config.json").is_file():
        return None
    return adapter
