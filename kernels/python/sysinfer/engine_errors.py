"""Errors of sysinfer that a person or a client reads."""

from __future__ import annotations

from syshax_contract.error_form import BadBody


class SetupError(Exception):
    """A wrong argument, environment value or file stops the start; the text says what was expected, found and where."""


class ModelFileError(SetupError):
    """The GGUF file is malformed, or holds a model that this engine can't run."""


class RequestError(BadBody):
    """A request is refused; becomes the OpenAI error form with HTTP `status`."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message, param, status)


class SequenceError(Exception):
    """One sequence can't go on; it ends with this text and HTTP `status`, and no other notices."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
