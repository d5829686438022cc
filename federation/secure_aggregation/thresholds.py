"""How many sites have to answer, and how many that collude with the server see a single update.

Of n sites that begin, t = floor(2 n / 3) + 1 have to survive, to sign one list of survivors and to release shares.
"needed" is the number of colluding sites that, with a server that breaks the protocol, see one honest site's update:

    n   t = must answer   may be missing   needed
    3          3                 0            2
    4          3                 1            2
    5          4                 1            3
    6          5                 1            4
    7          5                 2            3
    8          6                 2            4
    10         7                 3            4
    16         11                5            6
    64         43                21           22

Two ways lead to one update, and the table has the cheaper one:

- subtraction: the server takes for survivors only t sites, of which t - 1 collude and take their own updates off the
  sum. No protocol prevents it. Without dropouts, and with a server that follows the protocol, it takes n - 1 of them.
- two lists: c colluding sites sign both of two lists of survivors, every honest site one. Each list needs t signatures,
  so 2 t <= (n - c) + 2 c, that is c >= 2 t - n. The server then gets both kinds of shares of a site that is in one list
  only (Bonawitz et al. 2017, section 6).

c colluding sites, fewer than needed, learn with the server the sum over the honest survivors, which are t - c or more.
Sites that collude without the server learn nothing before the sum, and from it the sum of the others.
"""

from foundation.errors import StudyError

FEWEST = 3
"""Survivors that a sum has at least: from a sum of two, each of the two knows the other's update."""


def threshold(sites: int) -> int:
    """floor(2 n / 3) + 1: so many of ``sites`` have to sign and to release shares."""
    return 2 * sites // 3 + 1


def needed_colluding(sites: int) -> int:
    """Colluding sites that, with a server that breaks the protocol, see one update."""
    answer = threshold(sites)
    return min(answer - 1, 2 * answer - sites)


def check_sites(sites: int) -> None:
    """StudyError where so few sites are hidden by no sum; it says what more sites would give."""
    if sites >= FEWEST:
        return
    gives = "; ".join(
        f"{n} sites: {n - threshold(n)} may be missing, {needed_colluding(n)} colluding ones and the server see one"
        for n in (3, 4, 5, 8)
    )
    raise StudyError(
        f"secure_aggregation with {sites} {'site' if sites == 1 else 'sites'}: at least {FEWEST} are needed, as in a "
        f"sum of two each sees the other's update, and 4 to do without one that drops out ({gives}); win more sites "
        "or leave secure_aggregation out"
    )
