"""How large the project is: lines, lines of code, modules and the largest module, of the package and of the tests.

Lines of code are those that are left without blank lines, comments and docstrings.

    python benchmarks/size.py [COMMIT ...]      # the working tree, and any commits beside it
"""

import argparse
import ast
import io
import subprocess
import tokenize
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("lmdynamics", "tests")
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER)


def working_tree(part: str) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted((ROOT / part).rglob("*.py"))}


def committed(part: str, commit: str) -> dict[str, str]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    names = git("ls-tree", "-r", "--name-only", commit, part).splitlines()
    return {name: git("show", f"{commit}:{name}") for name in names if name.endswith(".py")}


def code_lines(source: str) -> int:
    """Lines that hold code: no docstring, comment or blank line."""
    used = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            used -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(used)


def row(modules: Mapping[str, str]) -> str:
    lines = {name: len(source.splitlines()) for name, source in modules.items()}
    largest = max(lines, key=lines.get)
    code = sum(map(code_lines, modules.values()))
    return (
        f"{sum(lines.values()):7,} lines {code:7,} of code {len(lines):4} modules, largest {lines[largest]} ({largest})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commits", nargs="*", help="commits to compare with the working tree")
    commits = parser.parse_args().commits
    for part in PARTS:
        print(f"{part:10} {'now':9} {row(working_tree(part))}")
        for commit in commits:
            try:
                print(f"{part:10} {commit[:9]:9} {row(committed(part, commit))}")
            except subprocess.CalledProcessError as error:
                parser.error(f"{commit} is not a commit of this repository: {error.stderr.strip()}")


if __name__ == "__main__":
    main()
