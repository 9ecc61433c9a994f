"""Text to tokens and back, with the files that lie beside a model. Imports neither torch nor onnx."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import ArtifactError, InputError

_FILE = "tokenizer.json"


class Tokenizer:
    """A model's own tokenizer and chat template.

    Args:
        folder: holds ``tokenizer.json``, and ``tokenizer_config.json`` and ``chat_template.jinja`` where there are any.

    Raises:
        ArtifactError: there is no tokenizer, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path = folder / _FILE
        if not path.is_file():
            raise ArtifactError(
                f"there is no {_FILE}",
                where=str(folder),
                fix="copy the tokenizer of the model there, or pass token ids",
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"the tokenizer is damaged: {error}", where=str(path), fix="copy it again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._folder = folder
        self._config = _read_object(folder / "tokenizer_config.json")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; special tokens written in it count as such, none are added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; special tokens are left out unless ``special`` is set."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def stream(self) -> Callable[[int], str]:
        """A function that takes token after token and returns the text that is complete with it, perhaps none."""
        from tokenizers.decoders import DecodeStream

        decoding = DecodeStream(skip_special_tokens=True)
        return lambda token: decoding.step(self._tokenizer, int(token)) or ""

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> list[int]:
        """Tokens of a conversation in the form that the model was trained on.

        Args:
            messages: each with ``role`` (``system``, ``user``, ``assistant``) and ``content``.
            answer: end where the model is to answer.

        Raises:
            ArtifactError: the model has no chat template, or a damaged one.
            InputError: the template refuses the messages.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self._template()
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        tokens = {name: _token(self._config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            template = environment.from_string(source)
        except TemplateError as error:
            raise ArtifactError(f"the chat template is damaged: {error}", where=str(self._folder)) from error
        try:
            text = template.render(messages=list(messages), add_generation_prompt=answer, **tokens)
        except (TemplateError, TypeError, KeyError) as error:
            raise InputError(f"the chat template refuses the messages: {error}", where="messages") from error
        return self.encode(text)

    def _template(self) -> str:
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = self._config.get("chat_template")
        if isinstance(found, list):  # several by name
            found = next((item.get("template") for item in found if item.get("name") == "default"), None)
        if not isinstance(found, str):
            raise ArtifactError(
                "the model has no chat template",
                where=str(self._folder),
                fix="use a model that was trained to chat, or pass text to tokenizer.encode()",
            )
        return found


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _token(value: Any) -> str:
    """A special token as the template sees it; some files keep more than its text."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path.name} is no JSON: {error}", where=str(path), fix="copy it again") from error
    return found if isinstance(found, dict) else {}
