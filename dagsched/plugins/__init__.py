"""Front ends beside `delayed`: graphs and calls written for other libraries, on one environment.

`setrunenv` and `getrunenv` name the environment that all of them share.
"""

from dagsched.runenv import getrunenv, setrunenv

__all__ = ["getrunenv", "setrunenv"]
