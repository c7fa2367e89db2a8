"""The files `init` writes. The folders are data: nothing imports them."""
