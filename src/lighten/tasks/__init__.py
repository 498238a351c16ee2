"""Built-in tasks; importing this package enters them into the registry."""

from lighten.tasks import digits, fashion_mnist

__all__ = ["digits", "fashion_mnist"]
