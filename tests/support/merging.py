"""Tokenizers with one token for a chat template's last characters and its newline, as Tulu-3's and OLMo-2's have."""

from pathlib import Path

from tiny import CHAT_TEMPLATE, CORPUS, build_model

#: How these tokenizers split text: newlines stay with the punctuation before them.
PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def merging_tokenizer(end, bos=None, eos=None):
    """A byte-level BPE tokenizer with one token for ``end``, such as ``>`` and a newline; no chat token is special.

    ``bos`` and ``eos`` are put around every text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>", "<bos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        min_frequency=1,
        show_progress=False,
    )
    letters = [f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 50
    core.train_from_iterator(CORPUS + letters + [f"user{end}", f"assistant{end}", f"system{end}"] * 200, trainer)
    around = [(token, core.token_to_id(token)) for token in (bos, eos) if token]
    if around:
        single = " ".join(filter(None, [bos, "$A", eos]))
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>" if bos else None
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 512
    return tokenizer


def save_merging(folder: Path, end=">\n", **around) -> Path:
    """Write a tiny model with such a tokenizer to ``folder`` and return it."""
    tokenizer = merging_tokenizer(end, **around)
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_log_likelihoods(folder: Path, context, letters):
    """Log-likelihoods of letters by a plain pass of transformers over the whole text's tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for letter in letters:
        ids = tokenizer(context + letter)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]])).logits[0, -1]
        found.append(logits.log_softmax(-1)[ids[-1]].item())
    return found
