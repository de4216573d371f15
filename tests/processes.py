"""Programs in processes of their own, without the seconds that each would take to import torch."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from checkout import ENVIRONMENT

# Imports once. Then each line that it reads is a job, which a fork of it runs as a fresh Python
# would: with its arguments, its folder, its output, its exit code, which waits for its threads. It
# leaves out tearing the modules down, which takes a second.
FORKS = """
import gc, json, os, sys, threading, traceback
exec(sys.argv[1])
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    if os.fork() == 0:
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
for number, file in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(file, os.O_RDWR), number)
sys.argv = ["-c", *job["arguments"]]
os.chdir(job["folder"])
code = 0
try:
    exec(compile(job["program"], "program", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    code = end.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
for thread in threading.enumerate():
    if not thread.daemon and thread is not threading.main_thread():
        thread.join()
sys.stdout.flush()
os._exit(code)
"""


class Forks:
    """Runs programs in forks of one process that has imported what they need.

    What they find in their environment is what that process was given: libraries read it when they
    are imported.
    """

    def __init__(self, imports: str, files: Path, environment: dict[str, str]):
        self.files = files
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, program: str, *arguments, folder: Path) -> subprocess.CompletedProcess:
        """The program's exit code, what it printed, and its errors."""
        out, err = self.files / "out", self.files / "err"
        out.write_text("")
        err.write_text("")
        job = dict(
            program=program,
            arguments=[*map(str, arguments)],
            folder=str(folder),
            out=str(out),
            err=str(err),
        )
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

    def output(self, program: str, *arguments, folder: Path) -> str:
        """What the program printed, which ended well."""
        run = self.run(program, *arguments, folder=folder)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        return run.stdout

    def end(self):
        self.process.communicate()


# What a program begins with that runs in two processes, which know of each other as `torchrun`
# tells them; if one fails, the other is ended.
TWICE = """
import os, signal, socket, sys
with socket.create_server(("localhost", 0)) as free:
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE="2")
os.environ.update(OMP_NUM_THREADS="1")
processes = []
for rank in "01":
    processes.append(os.fork())
    if processes[-1] == 0:
        os.environ.update(RANK=rank, LOCAL_RANK=rank)
        break
else:
    while processes:
        ended, status = os.wait()
        processes.remove(ended)
        if status:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            sys.exit(1)
    sys.exit()
"""

GLM = "import checkout; from glm_transformers.cli import main; main()"


def flags(options, arguments: tuple[str, ...]) -> list[str]:
    """The fields of options that are none of the arguments and have not their default."""
    defaults = asdict(type(options)(*("" for _ in arguments)))
    line = []
    for name, value in asdict(options).items():
        if name not in arguments and value != defaults[name]:
            line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return line


def launch_twice(folder: Path, command: list[str]) -> subprocess.CompletedProcess:
    """What `glm` with this command line prints, started by `accelerate launch`."""
    (folder / "program.py").write_text(GLM)
    # The flag asks for one process each for several devices; without a GPU these are on the CPU.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return subprocess.run(
        [*launch, folder / "program.py", *command],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    )
