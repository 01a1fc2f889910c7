"""The harness's own task class with what YAML cannot say: checks before the first forward pass, and system prompts."""

import functools
import itertools
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.tasks
import yaml
from jinja2 import TemplateError
from lm_eval.api.metrics import mean

# Imported because lm_eval 0.5 warns of each metric that it does not know.
import harness_ext.plugins  # noqa: F401
from harness_ext.documents import mirror_cache
from harness_ext.encoding import Watch, letter_tokens
from harness_ext.errors import UserError
from harness_ext.letters import Letter
from harness_ext.orders import by_option, check_shown, cyclic, read_orders, reordered

logger = logging.getLogger(__name__)

#: Whether the harness has one class for YAML tasks of all output types, as 0.4.13 has; 0.5 has one for each.
ONE_CLASS = not issubclass(lm_eval.api.task.MultipleChoiceTask, lm_eval.api.task.ConfigurableTask)
#: Its class of multiple-choice tasks from YAML.
HarnessTask: Any = lm_eval.api.task.ConfigurableTask if ONE_CLASS else lm_eval.api.task.MultipleChoiceTask


class WatchedTask(HarnessTask):
    """Run a YAML task that sees how the harness encodes its requests.

    Args:
        config: The task's configuration, as the harness reads it from YAML.

    Raises:
        UserError: A filter's option is unusable.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        # The harness makes filters only after the model's pass, which is late to say that an option is wrong; and 0.5
        # reads the data set only when it is asked for.
        for ensemble in self._filters if ONE_CLASS else [scorer.filter for scorer in self.scorers]:
            for make in ensemble.filters:
                make()
        self.eval_docs  # noqa: B018

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Load the data set as the harness does; of a local mirror, the rows that it holds now."""
        path, given = self.config.dataset_path, self.config.dataset_kwargs
        if cache := path and mirror_cache(path):
            dataset_kwargs = {**(dataset_kwargs or {}), "cache_dir": cache}
            # Here 0.5 looks for them; the folder of this machine stays out of the results file.
            self.config.dataset_kwargs = dataset_kwargs
        try:
            super().download(dataset_kwargs, **kwargs)
        finally:
            self.config.dataset_kwargs = given

    @staticmethod
    def resolve_field(doc: dict[str, Any], field: str | None = None) -> Any:
        """Fill in a field as the harness does; plain text is returned as it is, where the harness compiles it anew."""
        if field and field not in doc and not set(field) & {"{", "\r"}:
            return field
        return HarnessTask.resolve_field(doc, field)

    @functools.cached_property
    def eval_docs(self) -> Any:
        """Return the evaluated documents; the harness asks for them many times and would convert them anew."""
        return super().eval_docs

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests as the harness does, always anew, then watch them being encoded.

        The harness's ``--cache_requests`` knows a task by its name: after a change of rows or prompts it gives old
        prompts to new documents.
        """
        if kwargs.pop("cache_requests", False):
            logger.info("%s: requests are built anew, --cache_requests is not used", self.task_name)
        super().build_all_requests(**kwargs)
        requests = (instance.args[:2] for instance in self._instances)
        self.watch = Watch(self.task_name, requests, self.check_encoding)

    def check_encoding(self, watch: Watch) -> None:
        """Check all encoded requests before the first forward pass; raise what makes scoring pointless."""
        raise NotImplementedError

    def aggregate(self, bootstrap_iters: int | None = 100_000) -> tuple[dict[str, Any], int]:
        """Compute the numbers of all questions, with the standard errors of means alone; only lm_eval 0.5 asks.

        It would compute each ECE 100,000 times for a standard error; ours have intervals.
        """
        numbers, count = super().aggregate(0)
        for scorer in self.scorers:
            means = {metric.name for metric in scorer.metrics if metric.aggregation is mean}
            rows = {n: {k: v for k, v in row.items() if k in means} for n, row in scorer.reduced_docs.items()}
            numbers |= scorer.aggregate(rows, bootstrap_iters)[0]
        return numbers, count

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> Any:
        """Build the prompt as the harness does, with the system message in the user's where the template drops it."""
        if kwargs.get("chat_template"):
            kwargs["chat_template"] = functools.partial(render_chat, kwargs["chat_template"])
        return super().fewshot_context(doc, num_fewshot, **kwargs)


def letter_template() -> dict[str, Any]:
    """Return what all letter tasks share: prompt, filter and metrics, as ``lm_eval_tasks/_letters`` has them.

    Example:
        >>> letter_template()["output_type"]
        'multiple_choice'
    """

    # Written in C, where PyYAML has it: a task with 57 subjects reads the file for each of them.
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    Loader.add_constructor("!function", lambda _, node: pkgutil.resolve_name(node.value))
    text = (Path(lm_eval.tasks.__file__).parent / "mc_calib" / "_letters").read_text(encoding="utf-8")
    shared: dict[str, Any] = yaml.load(text, Loader)
    return shared


class LetterTask(WatchedTask):
    """Run a multiple-choice task whose options are scored by their letters.

    Args:
        config: The task's configuration; what it leaves out is as in :func:`letter_template`, so that a task of one's
            own needs no more than this class, its data set and ``process_docs``.

    Raises:
        UserError: A filter's option is unusable.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**letter_template(), **config})

    def process_results(self, doc: dict[str, Any], results: Any) -> dict[str, Any]:
        """Compute a question's metrics; of a task with fields of its own, from what it asks and takes for right."""
        if results and isinstance(results[0], float):
            # lm_eval 0.5 joins the filter's answers to all options into one list.
            results = [Letter(*results[i : i + 3]) for i in range(0, len(results), 3)]
        if not {"question", "choices", "gold"} <= doc.keys():
            gold, choices = self.doc_to_target(doc), self.doc_to_choice(doc)
            doc = {"question": self.doc_to_text(doc), **doc, "choices": choices, "gold": gold}
        return dict(super().process_results(doc, results))

    def check_encoding(self, watch: Watch) -> None:
        """Refuse prompts that the model would see cut or without BOS, and letters that it cannot tell apart.

        Raises:
            UserError: With the first such question, or the longest, and the count of cut ones.
        """
        if watch.lacking:
            raise UserError(
                f"{self.task_name}: the requests begin without {watch.lacking}, which the model's tokenizer puts before"
                " every text, so that the server would score other prompts; give add_bos_token=True in --model_args"
            )
        questions: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
        for (context, letter), encoded in watch.encoded.items():
            questions.setdefault(context, {})[letter] = (encoded.context, encoded.tokens)
        for context, letters in questions.items():
            try:
                letter_tokens(letters, watch.tokenizer)
            except UserError as error:
                raise UserError(
                    f"{self.task_name}: after {context[-160:]!r} {error}; run `python -m calibtune doctor` with this "
                    "model and task"
                ) from None
        cut = {context: encoded for (context, _), encoded in watch.encoded.items() if encoded.cut}
        if cut:
            self._report_cut(cut, len(questions))

    def apply_filters(self) -> Any:
        """Apply the filters as the harness does, and warn of answers that no model of this run may have given."""
        if unseen := len(self.watch.requests) - len(self.watch.encoded) - len(self.watch.sent):
            logger.warning(
                "%s: %d of %d requests were answered without being tokenized, as --use_cache does, which does not tell "
                "models apart: give each model a file of its own",
                self.task_name,
                unseen,
                len(self.watch.requests),
            )
        return super().apply_filters()

    def _report_cut(self, cut: dict[str, Any], questions: int) -> None:
        context, worst = max(cut.items(), key=lambda pair: pair[1].context)
        if worst.limit < 1:
            raise UserError(
                f"{self.task_name}: the model's configuration gives its context as {worst.limit} tokens, which the "
                "harness takes for its length; give max_length in --model_args"
            )
        message = (
            f"{self.task_name}: {len(cut)} of {questions} prompts are longer than the model's {worst.limit} tokens and "
            f"would lose their beginning (the longest has {worst.context} and ends {context[-160:]!r})"
        )
        if not (self.config.metadata or {}).get("allow_cut_prompts"):
            raise UserError(
                f"{message}; raise max_length, use fewer shots, or accept it with "
                "--metadata '{\"allow_cut_prompts\": true}'"
            )
        logger.warning("%s; scored all the same, as allow_cut_prompts says", message)


class OrderedTask(LetterTask):
    """Run a letter task that asks each question in several cyclic orders of its options, and averages.

    Its requests are those of all orders; elsewhere its prompts are those of the options' own order. Of each option the
    samples hold the responses of all orders, which ``letter_softmax`` averages. Metrics, documents and right answers
    are those of the options' own order.

    Args:
        config: The task's configuration; ``orders`` in its metadata is their number, "all" where it is not given.

    Raises:
        UserError: That number cannot be used, or a filter's option.
    """

    sampler: Any

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = dict(config.get("metadata") or {})
        self.orders = read_orders(metadata.get("orders", "all"), f"task {config.get('task')}: metadata's orders")
        super().__init__({**config, "metadata": {**metadata, "orders": self.orders}})
        self._asking = False

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests of all orders."""
        self._asking = True
        try:
            super().build_all_requests(**kwargs)
        finally:
            self._asking = False

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> Any:
        """Build the prompts of all orders while requests are built, with the same examples; else the own order's.

        Raises:
            UserError: The document's options cannot be turned, or the prompt does not show it.
        """
        render = super().fewshot_context
        if not self._asking:
            return render(doc, num_fewshot, **kwargs)
        own, self.sampler = self.sampler, _Drawn(self.sampler)
        try:
            contexts = [render(shown, num_fewshot, **kwargs) for shown in self._shown(doc)]
        finally:
            self.sampler = own
        check_shown(contexts, self.task_name)
        return contexts

    def _orders(self, doc: dict[str, Any]) -> list[list[int]]:
        return cyclic(len(self.doc_to_choice(doc)), self.orders)

    def _shown(self, doc: dict[str, Any]) -> list[dict[str, Any]]:
        what, cure = f"task {self.task_name}: asking in other orders of the options", "use --as-letters, or one order"
        gold = self.doc_to_target(doc)
        return [reordered(doc, gold, order, what, cure) for order in self._orders(doc)]

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Any:
        """Make a request for each letter of each order."""
        make = super().construct_requests
        if not self._asking:
            return make(doc, ctx, **kwargs)
        requests = [each for context in ctx for each in make(doc, context, **kwargs)]
        for number, request in enumerate(requests):
            request.idx = number
        return requests

    def apply_filters(self) -> Any:
        """Gather the responses to each option in its request of the own order, then apply the filters."""
        instances, gathered = list(self.instances), []
        for _, group in itertools.groupby(instances, key=lambda instance: instance.doc_id):
            requests = list(group)
            orders = self._orders(requests[0].doc)
            answers = iter(request.resps[0] for request in requests)
            rows = by_option([list(itertools.islice(answers, len(order))) for order in orders], orders)
            for option, responses in enumerate(zip(*rows, strict=True)):
                requests[option].resps = list(responses)
                gathered.append(requests[option])
        self._instances = gathered
        return super().apply_filters()


class _Drawn:
    """Give the examples that a sampler draws first, again and again."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._examples: Any = None

    def sample(self, **options: Any) -> Any:
        """Draw at the first call."""
        if self._examples is None:
            self._examples = self._sampler.sample(**options)
        return self._examples


def render_chat(template: Callable[..., str], messages: list[dict[str, str]], **kwargs: Any) -> str:
    """Render messages, with the system prompt in the user's first message where the template has no place for it.

    To a template that rejects the system role, the harness's own answer is to drop the message, instructions and all,
    or, in backends that ask a server, to fail.

    Args:
        template: The model's ``apply_chat_template``.
        messages: Role and content of each; outer blank lines are removed, since the template sets its own.
        **kwargs: Passed on.

    Returns:
        The prompt.
    """
    messages = [{**message, "content": message["content"].strip()} for message in messages]
    with_system = messages[0]["role"] == "system"
    try:
        rendered = template(messages, **kwargs)
        if not with_system or messages[0]["content"] in rendered:
            return rendered
    except TemplateError:
        if not with_system:
            raise
    system, user, *rest = messages
    return template([{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest], **kwargs)
