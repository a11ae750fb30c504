"""The app under test, which obeys the permissions of files also where it is run by root."""

import ctypes
import os

from tests.faults.app_under_test import make_dag, open_app

_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def give_up_write_access() -> None:
    """Drop the capability by which root writes what it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for each in (name for name, _ in _Sets._fields_):
        setattr(sets[0], each, getattr(sets[0], each) & ~(1 << _CAP_DAC_OVERRIDE))
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if os.geteuid() == 0:
    give_up_write_access()
app = open_app(make_dag)
