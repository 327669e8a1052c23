"""What README.md tells its readers to type, so that tests run that and nothing else."""
import re
from pathlib import Path

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def fenced(text, language):
    """The blocks in this text that are marked as this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def section(title):
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    if not found:
        raise ValueError(f"README.md has no section {title}")
    return found[1]


def lines_of(block):
    """Commands. One that ends with a backslash goes on in the next line; what follows a # is for the reader."""
    lines = (line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def commands(title, number=0):
    """Those of a section's first block for the shell, or of a later one."""
    return lines_of(fenced(section(title), "sh")[number])


def commands_of_first_screen():
    """The lines with `./setup` before the first section."""
    blocks = fenced(README.split("\n## ")[0], "sh")
    return [line for block in blocks for line in lines_of(block) if line.startswith("./setup")]


def c_program():
    """The lines of the section From C as a program: those that are no #include are the body of main()."""
    (text,) = fenced(section("From C"), "c")
    includes = "".join(line + "\n" for line in text.splitlines() if line.startswith("#include"))
    body = "".join(line + "\n" for line in text.splitlines() if not line.startswith("#include"))
    return f"#include <stdio.h>\n{includes}int main(void)\n{{\n{body}    return 0;\n}}\n"
