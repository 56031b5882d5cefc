"""Self-tests of engines and quantizations: `python -m lorafit.diagnostics.self_test DEVICE PRECISION LANGUAGE`.

The self-tests run in a separate process, because a broken backend can crash it. The process prints a JSON line at the
start of each self-test and another with its result.
"""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec

from lorafit import registry
from lorafit.errors import LorafitError
from lorafit.messages import _, set_language, use_utf8
from lorafit.registry import Entry

Trial = Callable[[str, str], str]  # (device, precision) -> result text; raises on failure


def main(device: str, precision: str, language: str) -> None:
    """Test every engine, then every quantization, and print the results."""
    use_utf8()
    set_language(language)
    for kind, trials in (("engine", registry.SELF_TESTS), ("quantization", registry.QUANTIZATIONS)):
        for name, entry in trials.items():
            if name == "mlx" and device != "mps" and find_spec("mlx") is None:
                continue  # a missing MLX matters only on Apple Silicon
            _tell(kind=kind, name=name)
            _tell(kind=kind, name=name, **run_self_test(entry, device, precision))


def run_self_test(entry: Entry, device: str, precision: str) -> dict[str, object]:
    """Run one self-test and return `good`, `found`, and on failure `fix`, or `install` for a missing package."""
    try:
        trial: Trial = registry.load(entry)
        return {"good": True, "found": trial(device, precision)}
    except LorafitError as error:
        if isinstance(error.__context__, ModuleNotFoundError):
            return _missing(error.__context__, entry)
        return {"good": False, "found": error.brief, "fix": error.fix}
    except ModuleNotFoundError as error:
        return _missing(error, entry)
    except Exception as error:  # a broken backend can raise any error; the report shows it
        first = str(error).strip().partition("\n")[0]
        return {"good": False, "found": f"{type(error).__name__}: {first}"}


def _missing(error: ModuleNotFoundError, entry: Entry) -> dict[str, object]:
    found = _("not installed: {name}").format(name=error.name)
    return {"good": False, "found": found, "install": entry.install}


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
