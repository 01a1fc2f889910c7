"""Put results onto the Hugging Face hub with lm_eval's tracker, and say what lm_eval only logs: that it failed."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from lm_eval.loggers import EvaluationTracker

from calibtune.endpoints.redaction import reason_without
from calibtune.errors import UserError, WorkFailed, reason
from calibtune.evaluation.harness import replaced
from calibtune.reading import read_json

logger = logging.getLogger(__name__)

FLAG, TOKEN = "--hf-hub-log-args", "HF_TOKEN"
PUSHES = ("push_results_to_hub", "push_samples_to_hub")
#: What lm_eval's tracker takes: the argument's name and its default.
KNOWN = {
    name: parameter.default
    for name, parameter in inspect.signature(EvaluationTracker).parameters.items()
    if name not in ("output_path", "token")
}
#: The calls of the hub's API with which lm_eval pushes, and whose errors it only logs.
CALLS = ("create_repo", "upload_file", "upload_folder")
#: With which it reads the newest results for its card.
LOAD = "lm_eval.loggers.evaluation_tracker", "load_dataset"


def check_hub_arguments(given: Mapping[str, Any] | None) -> None:
    """Refuse arguments of lm_eval's tracker with which nothing would go to the hub, or not where it should.

    Raises:
        UserError: With the argument, its value and what to give; also if the environment has no token.
    """
    if given is None:
        return
    for name, value in given.items():
        if name == "token":
            raise UserError(f"{FLAG} takes no token, which others would read in the command; set {TOKEN}")
        if name == "output_path":
            raise UserError(f"{FLAG} takes no output_path; give --output")
        if name not in KNOWN:
            raise UserError(f"{FLAG} {name} is unknown to lm_eval; give one of {', '.join(KNOWN)}")
        if isinstance(KNOWN[name], bool) and not isinstance(value, bool):
            raise UserError(f"{FLAG} {name} is {value!r}; give True or False")
        if name.endswith("_name") and value:
            _check_name(name, str(value))
    if not any(given.get(name) for name in PUSHES):
        raise UserError(f"{FLAG} pushes nothing; give {PUSHES[0]}=True, {PUSHES[1]}=True or both")
    if given.get("gated") and not given.get(PUSHES[1]):
        raise UserError(f"{FLAG} gated is for the repository of the samples; give {PUSHES[1]}=True, or leave it out")
    if not os.environ.get(TOKEN):
        raise UserError(f"{FLAG} needs a token that may write; set {TOKEN}")


def _check_name(name: str, value: str) -> None:
    try:
        validate_repo_id(f"{value}-private")
    except HFValidationError as error:
        raise UserError(f"{FLAG} {name} is {value!r}, no name of a repository ({reason(error)})") from None
    if "/" in value:
        raise UserError(f"{FLAG} {name} is {value!r}; give the name alone, and its owner as hub_results_org")


class HubTracker(EvaluationTracker):
    """Push results as lm_eval's own command does; the token is the environment's and appears in no message.

    The repositories are made at once, so that a wrong token or owner is found before a model is loaded.
    """

    def __init__(self, output: Path, given: Mapping[str, Any], model: str) -> None:
        """Find the owner, and make the repositories where there are none.

        Args:
            output: lm_eval's output folder.
            given: What :func:`check_hub_arguments` found good.
            model: The model's name, which lm_eval makes a folder of the repository.

        Raises:
            UserError: The hub refuses the token, the owner or a folder of such a name.
            WorkFailed: The hub cannot be reached.
        """
        token = os.environ[TOKEN]
        self._reason, self._errors = functools.partial(reason_without, token), list[Exception]()
        try:
            CommitOperationAdd(f"{model}/results.json", b"")
            super().__init__(output_path=str(output), token=token, **given)
            self._make_repositories()
        except Exception as error:  # huggingface_hub's HTTP library, and so its errors, differ by version
            kind = UserError if isinstance(error, (HfHubHTTPError, ValueError)) else WorkFailed
            raise kind(
                f"{FLAG}: the hub takes no results of {model} ({self._reason(error)}); see that {TOKEN} may "
                "write there, or leave it out"
            ) from None
        for name in CALLS:
            setattr(self.api, name, self._kept(getattr(self.api, name)))

    def _make_repositories(self) -> None:
        results, samples = (
            (self.results_repo, self.details_repo)
            if self.public_repo
            else (self.results_repo_private, self.details_repo_private)
        )
        pushed = zip((results, samples), PUSHES, strict=True)
        self.repositories = list(dict.fromkeys(repo for repo, push in pushed if getattr(self, push)))
        for repo in self.repositories:
            self.api.create_repo(repo, repo_type="dataset", private=not self.public_repo, exist_ok=True)
        if self.gated_repo:
            # lm_eval would ask huggingface.co whatever the endpoint, and push on where that fails.
            self.api.update_repo_settings(samples, gated="auto", repo_type="dataset")
            self.gated_repo: bool = False

    def _kept(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call of the API whose error is kept."""

        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                self._errors.append(error)
                raise

        return run

    def finish(self) -> None:
        """Write the card of the samples' repository and say where everything is.

        Raises:
            WorkFailed: Something was not pushed.
        """
        try:
            if self._errors:
                raise self._errors[0]
            if self.push_samples_to_hub:  # lm_eval's card needs them
                with replaced({LOAD: self._newest_results}):
                    self.recreate_metadata_card()
        except Exception as error:
            raise WorkFailed(
                f"the results are in {self.output_path}, but not all of them are on the hub "
                f"({self._reason(error)}); put them into {', '.join(self.repositories)} with `hf upload`"
            ) from None
        for repo in self.repositories:
            logger.info("pushed to %s/datasets/%s", self.api.endpoint, repo)

    def _newest_results(self, _: str, data_files: str, split: str) -> dict[str, list[Any]]:
        """Return the results at an address as a data set's first row.

        pyarrow 26, through which lm_eval reads them, fails at ``[null, "None"]``, which lm_eval writes for a tokenizer
        without a beginning-of-text token, as Qwen's.
        """
        repo, _, name = data_files.partition("/datasets/")[2].partition("/resolve/main/")
        path = self.api.hf_hub_download(repo, unquote(name), repo_type="dataset")
        return {"results": [read_json(Path(path))["results"]]}
