"""The tuner's entry in NNI's list of algorithms, so that YAML can say `tuner: {name: GumbelSearch}`.

NNI keeps the list in the configuration directory of the Python environment; its own functions read
and write it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni.tools.package_utils import AlgoMeta, get_algo_meta, register_algo_meta, unregister_algo_meta

from nni_gumbel.errors import UsageError, first_line

NAME = "GumbelSearch"
CLASS_NAME = "nni_gumbel.pipeline.tuner.GumbelSearchTuner"


def register() -> None:
    """Make the tuner known to NNI; a second time changes nothing.

    Raises:
        UsageError: NNI's list cannot be read or written.
    """
    # No validator: NNI 3.0 calls none for today's YAML, the tuner checks its settings itself.
    meta = AlgoMeta(
        name=NAME, alias=None, class_name=CLASS_NAME, accept_class_args=True, class_args=None,
        validator_class_name=None, algo_type="tuner", is_advisor=False, is_builtin=False, nni_version=None,
    )  # fmt: skip
    if not is_registered():
        _on_the_list(register_algo_meta, meta)


def unregister() -> None:
    """Take the tuner off NNI's list; a second time changes nothing.

    Raises:
        UsageError: NNI's list cannot be read or written.
    """
    _on_the_list(unregister_algo_meta, NAME)


def is_registered() -> bool:
    """Whether NNI knows the tuner under its name.

    Raises:
        UsageError: NNI's list cannot be read.
    """
    meta = _on_the_list(get_algo_meta, NAME)
    return meta is not None and meta.class_name == CLASS_NAME


def _on_the_list(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:  # the list is a YAML file that a person may have edited or may not write
        from nni.runtime.config import get_config_directory

        raise UsageError(
            f"NNI's list of algorithms: {first_line(error)}; see that registered_algorithms.yml in "
            f"{get_config_directory()} is sound and can be written"
        ) from error
