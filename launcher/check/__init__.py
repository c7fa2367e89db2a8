"""`launcher check`: the container contract's numbered statements as a suite that any image can be tested with.

table -> suite -> bench -> target: which checks there are, running them,
what they share, and how a container is started.
"""
