"""All benchmarks, one after another, each in a process of its own.

    python -m benchmarks.run [--coverage]

The coverage of the intervals takes long and depends on no machine: it runs only where it is asked for.
"""

import subprocess
import sys

from foundation.wording import words

BENCHMARKS = words("""
    startup augmentation aggregation throughput simulation deployment burnt_in_text probes secure.sums secure.rounds
    privacy.step privacy.audit round_cost
""")


def main() -> int:
    """Run them; 1 when one of them failed (not when a target was missed: the result says so)."""
    chosen = [*BENCHMARKS, *(["statistics.interval_coverage"] if "--coverage" in sys.argv[1:] else [])]
    failed = [name for name in chosen if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    for name in failed:
        print(f"{name}: failed", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
