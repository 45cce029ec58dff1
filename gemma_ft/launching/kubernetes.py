"""A JobSet for Kubernetes (`kubectl apply`)."""

from gemma_ft.launching.header import build_header
from gemma_ft.launching.job import Job
from gemma_ft.launching.text import bash_lines, bash_word, fill, yaml_block, yaml_text

SUFFIX = ".jobset.yaml"
SECRET = "gemma-ft"
"""The Kubernetes secret that holds the tokens of a run."""

_CHECKED = (
    "its like was read by the models of kubeflow-trainer-api 2.3 (JobSet) and kubernetes-validate 1.37 "
    "(its Job and ConfigMap), and its script run for two nodes on one machine; no cluster has run it."
)
_ENDING_SECONDS = 90
"""What the end takes beside the workers: torchrun, and the wait for the first node's last word."""


def submit_command(job: Job, file: str) -> str:
    """Return the command that submits a file."""
    return f"kubectl apply -f {bash_word(file)}"


def render(job: Job, *, file: str, image: str, claim: str, python: str) -> str:
    """Write the JobSet, with the script that its pods run.

    Args:
        job: The run.
        file: What it will be called.
        image: Container image that holds gemma_ft.
        claim: PersistentVolumeClaim that all pods can write to.
        python: The interpreter in the image.
    """
    header = build_header(
        job, submit=submit_command(job, file), checked=_CHECKED, prepare=_prepare(job, claim)
    )
    return fill(
        "kubernetes.yaml",
        header=header,
        name=job.plain_name,
        nodes=job.nodes,
        gpus=job.gpus,
        image=yaml_text(image),
        claim=yaml_text(claim),
        secrets=_secrets(job),
        options=_options(job),
        stop_seconds=job.stop_seconds,
        grace_seconds=job.stop_seconds + _ENDING_SECONDS,
        python=bash_word(python),
        run_dir=bash_word(job.run_dir),
        words=yaml_block(bash_lines(job.words), 4),
        node=yaml_block(fill("node.sh"), 4),
        keep=yaml_block(fill("keep.sh"), 4),
    )


def _prepare(job: Job, claim: str) -> tuple[str, ...]:
    lines = [
        "The cluster must have JobSet 0.6 or later, and Kubernetes 1.27 or later.",
        f"The claim {claim} must be ReadWriteMany; what the run reads is put there.",
        f"An ended run is begun again by: kubectl delete jobset {job.plain_name}, and the same apply.",
    ]
    if job.secrets:
        keys = " ".join(f'--from-literal={name}="${name}"' for name in job.secrets)
        lines.insert(2, f"Its tokens: kubectl create secret generic {SECRET} {keys}")
    return tuple(lines)


def _secrets(job: Job) -> str:
    entry = """\
                    - name: {name}
                      valueFrom:
                        secretKeyRef:
                          name: {secret}
                          key: {name}"""
    return "\n".join(entry.format(name=name, secret=SECRET) for name in job.secrets)


def _options(job: Job) -> str:
    sizes = {"cpu": job.cpus, "memory": job.memory and f"{job.memory}Gi"}
    lines = [f'{" " * 22}{name}: "{size}"' for name, size in sizes.items() if size is not None]
    return "\n".join([f"{' ' * 20}requests:", *lines]) if lines else ""
