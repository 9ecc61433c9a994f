"""Text and tokens: against transformers, chat templates, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from burnish.compiler.generation.tokenizer import Tokenizer
from burnish.ir.errors import ArtifactError, InputError
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Fast

TEMPLATE = (
    "{% for message in messages %}\n"
    "    {% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hello wörld"}, {"role": "assistant", "content": "good"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator(["hello world, good morning"] * 3, trainer)
    fast.add_special_tokens([AddedToken(f"<|{role}|>", special=True) for role in ("user", "assistant", "system")])
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<end>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_it_encodes_and_chats_like_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "hello wörld, <|user|> good 日本"
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    ids = ours.encode(text)
    assert ours.decode(ids, special=True) == text and "<|user|>" not in ours.decode(ids)
    for answer in (True, False):
        wanted = theirs.apply_chat_template(MESSAGES, add_generation_prompt=answer, return_dict=True)["input_ids"]
        assert ours.chat(MESSAGES, answer=answer) == wanted


def test_streamed_text_is_the_whole_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    text = "hello wörld — 日本"
    write = tokenizer.stream()
    parts = [write(token) for token in tokenizer.encode(text)]
    assert "".join(parts) == text and "" in parts  # letters of several tokens come when they are whole
    assert not any("�" in part for part in parts)


@pytest.mark.parametrize("form", ["file", "list"])
def test_other_places_of_a_template(folder: Path, form: str) -> None:
    wanted = Tokenizer(folder).chat(MESSAGES)
    config: dict[str, Any] = {"eos_token": {"content": "<end>"}}
    if form == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        config["chat_template"] = [{"name": "tool", "template": ""}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(folder).chat(MESSAGES) == wanted


def test_what_a_template_refuses(folder: Path) -> None:
    with pytest.raises(InputError, match="no tools"):
        Tokenizer(folder).chat([{"role": "tool", "content": ""}])
    with pytest.raises(InputError, match="refuses"):
        Tokenizer(folder).chat([{"role": "user"}])


def test_a_template_cannot_reach_out(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="unsafe"):
        Tokenizer(folder).chat(MESSAGES)


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ArtifactError, match="template is damaged"):
        Tokenizer(folder).chat(MESSAGES)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no chat template"):
        Tokenizer(folder).chat(MESSAGES)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="no JSON"):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="there is no"):
        Tokenizer(folder)
