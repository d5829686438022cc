"""``python -m fedpretext``."""

from fedpretext.cli import program

if __name__ == "__main__":
    program()
