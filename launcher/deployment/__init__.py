"""An endpoint's life: deployed, gone back with, deleted, and reaped when nobody needs it."""
