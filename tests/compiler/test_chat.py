"""``burnish chat``, driven through a pseudo-terminal as a person would, and through a pipe."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import burnish
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = "{% for message in messages %}{{ message['role'][0] + message['content'] }}{% endfor %}A"
COMMAND = [sys.executable, "-c", "from burnish.compiler.cli import main; main()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that speaks in letters."""
    source, saved = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=94, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=100_000, bos_token_id=None, eos_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(source)
    tokenizer = Tokenizer(models.WordLevel({chr(33 + index): index for index in range(94)}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text(TEMPLATE)
    burnish.export(source, saved, cache=False)
    return saved


def _hears_interrupts() -> None:
    """Tests that run in the background of a shell ignore interrupts, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process in a pseudo-terminal, and what it has written so far."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "chat", *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb"}, close_fds=True, preexec_fn=_hears_interrupts,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def wait(self, wanted: str, count: int = 1, seconds: float = 60) -> str:
        """Everything written, once ``wanted`` stands in it so often."""
        end = time.monotonic() + seconds
        while self.text.count(wanted) < count:
            left = end - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self.text!r}"
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:  # the other side has gone
                    assert self.text.count(wanted) >= count, f"ended without {wanted!r}: {self.text!r}"
        return self.text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_conversation_in_a_terminal(folder: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(str(folder), "--tokens", "12")
    terminals.append(terminal)
    terminal.wait("Ctrl-C interrupts")
    terminal.wait("> ")
    terminal.type("hello\r")
    terminal.wait("[12 tokens,")
    terminal.wait("tokens/s")
    terminal.wait("> ", 2)
    terminal.type("\r")  # an empty line asks again and says nothing
    terminal.wait("> ", 3)
    terminal.type("/nonsense\r")
    terminal.wait("no command /nonsense")
    terminal.wait("> ", 4)
    terminal.type("/reset\r")
    terminal.wait("> ", 5)
    terminal.type("again\r")
    terminal.wait("[12 tokens,", 2)
    terminal.wait("> ", 6)
    time.sleep(0.2)  # until the line editor listens
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0
    assert "Traceback" not in terminal.text


def test_ctrl_c_interrupts_an_answer_and_not_the_conversation(folder: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(str(folder), "--tokens", "50000")
    terminals.append(terminal)
    terminal.wait("> ")
    terminal.type("hello\r")
    time.sleep(1.5)
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait(" tokens,")
    spoken = int(terminal.text.split(" tokens,")[0].rsplit("[", 1)[1])
    assert 0 <= spoken < 50000
    terminal.wait("> ", 2)
    time.sleep(0.5)  # until the line editor listens
    os.killpg(terminal.process.pid, signal.SIGINT)  # at the prompt: says how to leave
    terminal.wait("Ctrl-C interrupts", 2)
    terminal.type("/exit\r")
    assert terminal.process.wait(20) == 0
    assert "Traceback" not in terminal.text


def piped(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "chat", *arguments], input=text, capture_output=True, text=True, timeout=120)


def test_questions_from_a_pipe(folder: Path) -> None:
    done = piped(str(folder), "--tokens", "8", text="hello\n\nhello again\n")
    assert done.returncode == 0 and done.stderr.count("[8 tokens,") == 2
    model = burnish.load(folder)
    first = model.tokenizer.chat([{"role": "user", "content": "hello"}])
    spoken = model.generate(first, max_new_tokens=8, repetition_penalty=1.1)[len(first) :]
    assert done.stdout.splitlines()[0] == model.tokenizer.decode(spoken)


def test_a_conversation_that_is_full(folder: Path, tmp_path: Path) -> None:
    done = piped(str(folder), "--tokens", "4", text="x" * 100_001 + "\nshort\n")
    assert "fills the context" in done.stderr and "[4 tokens," in done.stderr


def test_models_that_cannot_chat(folder: Path, tmp_path: Path) -> None:
    done = piped(str(tmp_path / "nothing"))
    assert done.returncode == 1 and "no such file or folder" in done.stderr
    linear = torch.nn.Linear(2, 2).eval()
    burnish.export(linear, tmp_path / "linear", torch.ones(1, 2), cache=False)
    done = piped(str(tmp_path / "linear"))
    assert done.returncode == 1 and "no decoder" in done.stderr and "Traceback" not in done.stderr
    saved = burnish.load(folder).save(tmp_path / "copy")
    (saved / "chat_template.jinja").unlink()
    done = piped(str(saved))
    assert done.returncode == 1 and "no chat template" in done.stderr
    done = piped(str(folder), "--temperature", "-1")
    assert done.returncode == 1 and "negative" in done.stderr
