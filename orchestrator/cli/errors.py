"""Turn user errors into one-line messages and exit codes, without a traceback."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


class _WrongStudyFile(click.ClickException):
    """The study file is wrong or missing; same exit code as a wrong command line."""

    exit_code = 2


def user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Show a user error as one line, and a wrong study file as one line per error."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            from sftsearch.search_spaces.load import NoStudyFileError
            from sftsearch.search_spaces.mistakes import StudyFileError

            in_file = isinstance(error, NoStudyFileError | StudyFileError)
            kind = _WrongStudyFile if in_file else click.ClickException
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)

    return wrapped
