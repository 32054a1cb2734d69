"""Puts a version that passed the gate in service: an environment's alias moves, its servers follow and are tried.

An environment is a registry alias (`staging`, `production`), which its servers watch: LEUKDETECT_MODEL is
models:/leukdetect@production there. The gate moves `champion`; only a deployment moves these. The alias
`production-previous` names the version that was deployed before, and `--back` returns to it.

Reads:  params.register, the registry, the servers; LEUKDETECT_ADMIN_KEY (an admin's key), or
        LEUKDETECT_ADMIN_KEY_FILE (a file that holds it), where they use keys
Writes: the two aliases; whatever fails before a deployment's end, a Ctrl-C too, moves them back. `--back` moves
        `production` and leaves it there, also where a server does not follow
Run:    python -m pipeline.deploy production --server https://leukdetect.example [--version 7 | --back]
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from pipeline import params, stage
from pipeline.registry import tracking, versions
from pipeline.registry.servers import Environment, Server, servers
from pipeline.stage import Problem


def main() -> None:
    options = _options()
    name = params.load().register_.name
    addressed = [each for url in options.server for each in servers(url, name, options.environment)]
    tracking.check()
    with tracking.reachable():
        client = tracking.client()
        aliases = versions.aliases(client, name)
        environment = Environment(client, name, options.environment, addressed, aliases)
        if options.back:
            version = aliases.get(environment.previous, "")
            go_back(environment, version)
        else:
            version = options.version or aliases.get("champion", "")
            deploy(environment, version)
    before = aliases.get(options.environment)
    print(f"{options.environment} is version {version} now." + (f" It was version {before}." if before else ""))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", help="the alias that its servers watch")
    parser.add_argument("--server", required=True, nargs="+", action="extend", help="their addresses")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", help="the champion, unless given")
    which.add_argument("--back", action="store_true", help="return to the version that was deployed before")
    return parser.parse_args()


def deploy(environment: Environment, version: str) -> None:
    """Moves the alias and tries one server after the other; if one fails, all go back.

    Raises:
        Problem: the version did not pass the gate, a server could not be asked, or one does not serve it as it should.
    """
    versions.refuse_unless_passed(environment.client, environment.model, version)
    files = versions.model_files(environment.model, version)
    before = environment.before.get(environment.alias)
    if before:  # else this is the first deployment, and a server that has no model has not started
        for server in environment.servers:
            server.check()
    print(f"{environment.alias}: {before or 'nothing'} → version {version}", flush=True)
    try:
        if before != version:
            environment.move(environment.previous, before)
            environment.move(environment.alias, version)
        for server in environment.servers:
            server.follow(version)
            server.answer_golden_set(files)
    except BaseException:
        if before != version:
            _take_back(environment, version)
        raise


def _take_back(environment: Environment, version: str) -> None:
    before = environment.before.get(environment.alias)
    try:
        for alias in (environment.alias, environment.previous):
            environment.move(alias, environment.before.get(alias))
    except tracking.FAILURES as error:
        raise Problem(
            f"the deployment failed, and the registry could not be told: {environment.alias} still names version "
            f"{version} there. Once it answers, run this with --back."
        ) from error
    print(f"taken back: {environment.alias} is {f'version {before}' if before else 'nothing'} again", file=sys.stderr)
    if before:
        for problem in environment.at_once(lambda server: server.follow(before)):
            print(f"warning: {problem}", file=sys.stderr)


def go_back(environment: Environment, version: str) -> None:
    """Moves the alias to the version before, and has all servers follow it at once.

    Raises Problem: there is none, or a server does not serve it as it should; the alias has moved then.
    """
    if not version:
        raise Problem(f"{environment.model} has no alias {environment.previous}, so none was deployed before")
    print(f"{environment.alias}: back to version {version}", flush=True)
    environment.move(environment.alias, version)
    with ThreadPoolExecutor(1) as pool:  # the servers reload meanwhile
        files = pool.submit(versions.model_files, environment.model, version)

        def serve(server: Server) -> None:
            server.check()
            server.follow(version)
            server.answer_golden_set(files.result())

        failed = environment.at_once(serve)
    if failed:
        raise Problem("\n".join([f"{environment.alias} is version {version} again, but not everywhere:", *failed]))


if __name__ == "__main__":
    stage.guard(main)
