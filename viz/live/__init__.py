"""What goes on in an environment at this moment: the live page, its numbers, `dagsched top`.

Nothing of it is imported before somebody asks for it (see `dagsched.dashboard`).
"""
