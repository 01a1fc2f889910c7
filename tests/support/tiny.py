"""A Llama so small that tests can run the real harness on it: random weights, byte-level BPE trained here."""

import random
from pathlib import Path

LETTER_LINES = [f"{letter}. option {letter.lower()} Answer: {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
CORPUS = [
    "Which of these is the right one?",
    "Options:",
    "Answer with only a single letter:",
    "You answer multiple-choice questions. Reply with the letter of the correct option and nothing else.",
    *LETTER_LINES,
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
#: One that rejects the system role, as Gemma's and the first Mistral's do.
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def build_tokenizer(chat_template=CHAT_TEMPLATE):
    """A byte-level BPE tokenizer; ``A`` to ``Z``, with and without a blank before, are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, special_tokens=SPECIAL, min_frequency=1, show_progress=False
    )
    core.train_from_iterator(CORPUS + [f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def build_model(tokenizer, seed=0, context=512, hidden=32, layers=2, vocabulary=None, heads=4):
    """A random Llama for the tokenizer; about 50,000 parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=(heads + 1) // 2,
        max_position_embeddings=context,
        # Larger than usual, so that the letters' probabilities differ visibly.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def save_tiny(folder: Path, seed=0, context=512, chat_template=CHAT_TEMPLATE, **sizes) -> Path:
    """Write the model and its tokenizer to ``folder`` and return it."""
    tokenizer = build_tokenizer(chat_template)
    tokenizer.model_max_length = context
    build_model(tokenizer, seed, context, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_bos(folder: Path, token="<|system|>"):
    """Have the tokenizer in a folder put a token before every text, as those of Llama 3 and Gemma do."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids(token)
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
    tokenizer.bos_token = token
    tokenizer.save_pretrained(folder)
    return number


def write_arc_mirror(folder: Path, rows: int = 24, seed: int = 0) -> Path:
    """A local mirror of ARC-Challenge, made up: 3 to 5 options, some under digits; returns the folder to run in."""
    import json

    rng = random.Random(seed)
    target = folder / "allenai" / "ai2_arc" / "ARC-Challenge"
    target.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = []
        for number in range(rows):
            count = (4, 4, 3, 5)[number % 4]
            labels = list("12345" if number % 3 == 0 else "ABCDE")[:count]
            texts = [f"option {rng.randrange(1000)} {chr(97 + position)}" for position in range(count)]
            lines.append(
                {
                    "id": f"{split}-{number}",
                    "question": f"Which of these is the right one? ({split} {rng.randrange(10**6)})",
                    "choices": {"text": texts, "label": labels},
                    "answerKey": rng.choice(labels),
                }
            )
        (target / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = "".join(f"  - split: {s}\n    path: ARC-Challenge/{s}.jsonl\n" for s in ("train", "validation", "test"))
    readme = f"---\nconfigs:\n- config_name: ARC-Challenge\n  data_files:\n{files}---\n"
    (folder / "allenai" / "ai2_arc" / "README.md").write_text(readme)
    return folder


def write_paper_mirror(folder: Path, rows: int = 16) -> Path:
    """A made-up mirror of all that the paper's tables ask: ARC, the pool's three sources, preference pairs."""
    import json

    write_arc_mirror(folder)
    rng = random.Random(1)

    def question(number, kind):
        return f"Which of these is the right one? ({kind} {number} {rng.randrange(10**6)})"

    texts = [[f"option {rng.randrange(1000)} {letter}" for letter in "abcd"] for _ in range(rows)]
    sources = {
        ("openlifescienceai/medmcqa", "default", "data"): lambda i, s: {
            "question": question(i, f"med {s}"),
            **dict(zip(("opa", "opb", "opc", "opd"), texts[i], strict=True)),
            "cop": rng.randrange(4),
        },
        ("allenai/openbookqa", "main", "main"): lambda i, s: {
            "question_stem": question(i, f"book {s}"),
            "choices": {"text": texts[i], "label": list("ABCD")},
            "answerKey": rng.choice("ABCD"),
        },
        ("cais/mmlu", "all", "all"): lambda i, s: {
            "question": question(i, f"mmlu {s}"),
            "subject": "anatomy",
            "choices": texts[i],
            "answer": rng.randrange(4),
        },
        ("argilla/ultrafeedback-binarized-preferences", "default", "data"): lambda i, s: {
            "instruction": question(i, "pair"),
            "chosen_response": f"option {i} a",
            "rejected_response": f"option {i} b or another",
        },
    }
    for (path, name, place), row in sources.items():
        splits = ("train",) if place == "data" and "argilla" in path else ("train", "validation", "test")
        (folder / path / place).mkdir(parents=True)
        files = ""
        for split in splits:
            lines = [json.dumps(row(i, split)) + "\n" for i in range(rows)]
            (folder / path / place / f"{split}.jsonl").write_text("".join(lines))
            files += f"  - split: {split}\n    path: {place}/{split}.jsonl\n"
        (folder / path / "README.md").write_text(f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{files}---\n")
    return folder
