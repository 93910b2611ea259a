"""Completion of the words after `pgcli train`: file names and a look into YAML files; neither Hydra nor torch.

Typer's script serves zsh, fish and PowerShell. Bash gets one of our own, because bash cuts words at `=` and `:`, so
that Typer's script would get `algo`, `=`, `pp` if `algo=pp` was typed.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from pgcli.options import GROUPS, find_file, headline, options, search_path

BASH = r"""_pgcli_completion() {
    # Bash cuts words at = and : , so the line is cut here, at spaces alone.
    local line="${COMP_LINE:0:COMP_POINT}" words word cword answers
    read -ra words <<< "$line"
    [[ "$line" =~ [[:space:]]$ ]] && words+=("")
    cword=$(( ${#words[@]} - 1 )); word="${words[cword]}"
    answers=$(COMP_WORDS="$line" COMP_CWORD=$cword _PGCLI_COMPLETE=complete_bash "${words[0]}" 2>/dev/null)
    COMPREPLY=()
    [[ -z "$answers" ]] && return 0
    mapfile -t COMPREPLY <<< "$answers"
    # Bash replaces only what follows the last of its own cuts.
    local cut="" tail="$word" mark
    for mark in = :; do
        [[ "$COMP_WORDBREAKS" == *"$mark"* && "$tail" == *"$mark"* ]] && tail="${tail##*"$mark"}"
    done
    cut="${word%"$tail"}"
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ "${#COMPREPLY[@]}" == 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _pgcli_completion pgcli policy-gradient-cli
"""


# ---------------------------------------------------------------- the bash script


def handle(words: list[str]) -> bool:
    """`--show-completion` and `--install-completion` in bash; Typer's own options do it for the other shells."""
    if words not in (["--show-completion"], ["--install-completion"]) or _shell() != "bash":
        return False
    if words == ["--show-completion"]:
        typer.echo(BASH, nl=False)
        return True
    script, rc = Path.home() / ".bash_completions" / "pgcli.sh", Path.home() / ".bashrc"
    script.parent.mkdir(exist_ok=True)
    script.write_text(BASH)
    line = f"source '{script}'"
    if line not in (rc.read_text() if rc.is_file() else ""):
        with rc.open("a") as file:
            file.write(f"\n{line}\n")
    typer.echo(f"bash completion installed in {script}; it works in the next terminal")
    return True


def _shell() -> str:
    import shellingham

    try:
        return shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        return Path(os.environ.get("SHELL", "")).name


# ---------------------------------------------------------------- the possible words


def complete_override(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(word, help) for `algo=pp`, `algo.lear`, `seed=`; the keys are those of the options chosen on the line."""
    folders = search_path(ctx.params.get("config_dir") or ())
    chosen = _choices(ctx.params.get("overrides") or (), folders)
    return [(word, help) for word, help in _words(incomplete, chosen, folders) if word.startswith(incomplete)]


def complete_study(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(name, title) of each study whose name begins with `incomplete`."""
    found = options("experiment", search_path(ctx.params.get("config_dir") or ()))
    return [(name, headline(file)) for name, file in found.items() if name.startswith(incomplete)]


def complete_pipeline(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(name, title) of each pipeline whose name begins with `incomplete`."""
    found = options("pipeline", search_path(ctx.params.get("config_dir") or ()))
    return [(name, headline(file)) for name, file in found.items() if name.startswith(incomplete)]


def complete_stage_override(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`ppo.algo.lear`: a stage, then the keys of that stage's options; `seed=` is for all stages."""
    folders = search_path(ctx.params.get("config_dir") or ())
    file = find_file("pipeline", str(ctx.params.get("name")), folders)
    stages = {s.get("name"): s.get("words", []) for s in (_yaml(file).get("stages") or [])} if file else {}
    stage, dot, own = incomplete.partition(".")
    if dot and stage in stages:
        chosen = _choices(stages[stage], folders)
        return [(f"{stage}.{word}", help) for word, help in _words(own, chosen, folders) if word.startswith(own)]
    found = [(f"{name}.", " ".join(words)) for name, words in stages.items()]
    found += [(f"{key}=", str(value)) for key, value in _top(folders)]
    return [(word, help) for word, help in found if word.startswith(incomplete)]


def _words(incomplete: str, chosen: Mapping[str, str], folders: list[Path]) -> Iterator[tuple[str, str]]:
    key, equals, value = incomplete.partition("=")
    group = key.partition(".")[0]
    if equals and key in (*GROUPS, "tuned"):
        before = value[: value.rfind(",") + 1]  # of a sweep: algo=ppo,a2c
        yield from ((f"{key}={before}{name}", headline(file)) for name, file in options(key, folders).items())
        if key == "tuned":
            yield from (("tuned=auto", "the file for this algorithm and environment"), ("tuned=none", "no overlay"))
    elif equals:
        values = dict(_settings(group, chosen, folders) if group in chosen else _top(folders))
        if key in values:
            current = values[key]
            yield from (
                (f"{key}={text}", "") for text in (("true", "false") if isinstance(current, bool) else (current,))
            )
    elif "." in key and group in chosen:
        yield from ((f"{name}=", str(value)) for name, value in _settings(group, chosen, folders))
    else:
        yield from ((f"{group}=", option) for group, option in (*chosen.items(), ("tuned", "auto")))
        yield from ((f"{group}.", "") for group in chosen)
        yield from ((f"{name}=", str(value)) for name, value in _top(folders))


def _choices(overrides: Any, folders: list[Path]) -> dict[str, str]:
    """The option of each group: the one on the line, else the one in `config.yaml`."""
    chosen: dict[str, str] = {}
    for entry in _yaml(folders[0] / "config.yaml").get("defaults", []):
        chosen |= entry if isinstance(entry, dict) else {}
    for word in overrides:
        group, _, option = word.partition("=")
        if group == "env" and not find_file(group, option, folders):
            option = "gymnasium"  # its id
        if group in GROUPS:
            chosen[group] = option
    return {group: chosen[group] for group in GROUPS}


def defaults_of(group: str, option: str, folders: list[Path]) -> dict[str, Any]:
    """The settings in an option's file, `name` included, over those of the options it starts from."""
    file = find_file(group, option, folders)
    content = _yaml(file) if file else {}
    parents = [parent for parent in content.pop("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= defaults_of(group, parent, folders)
    return merged | content


def _settings(group: str, chosen: Mapping[str, str], folders: list[Path]) -> Iterator[tuple[str, Any]]:
    found = leaves(defaults_of(group, chosen[group], folders), f"{group}.")
    return ((key, value) for key, value in found if key != f"{group}.name")


def _top(folders: list[Path]) -> Iterator[tuple[str, Any]]:
    content = _yaml(folders[0] / "config.yaml")
    content.pop("defaults", None)
    return leaves(content)


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # running the command reports the error
    return content if isinstance(content, dict) else {}
