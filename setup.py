from pathlib import Path

from setuptools import setup

setup(
    name="glm-transformers",
    version="0.1.0",
    description="GLM (General Language Model, ACL 2022) for Hugging Face Transformers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The repository root is the package: the shipped files are flat because Hub repositories are.
    packages=[
        "glm_transformers",
        "glm_transformers.conversion",
        "glm_transformers.hub_repository",
        "glm_transformers.training",
    ],
    package_dir={
        "glm_transformers": ".",
        "glm_transformers.conversion": "conversion",
        "glm_transformers.hub_repository": "hub_repository",
        "glm_transformers.training": "training",
    },
    package_data={
        "glm_transformers": ["examples/demo_checkpoint/**", "examples/demo_vocabulary/*"]
    },
    install_requires=[
        "transformers>=4.57,<6",
        "torch>=2.6",
        "tokenizers",
        "accelerate",
        "huggingface_hub",
        "numpy",
        "psutil",
        "rich",
        "safetensors",
        "tqdm",
        "typer",
    ],
    extras_require={
        "train": ["datasets", "matplotlib", "tensorboard"],
        "test": ["datasets", "matplotlib", "pytest", "sentencepiece", "tensorboard"],
    },
    entry_points={"console_scripts": ["glm = glm_transformers.cli:main"]},
)
