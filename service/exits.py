"""How a command ends that cannot do what was asked."""

import click


class Refused(click.ClickException):
    """What was asked cannot be done; the message names the value, the rule and the way out."""

    exit_code = 2


class Failed(click.ClickException):
    """What was asked could not be finished, through no fault of its own."""

    exit_code = 3
