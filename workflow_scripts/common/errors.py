"""Errors whose message is meant for the user."""


class UserError(Exception):
    """Bad input or a state that the user must resolve; the message describes it and the remedy."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message has one line per problem."""
