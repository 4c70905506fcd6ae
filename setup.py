"""What pyproject.toml cannot say: the folders configs/ and examples/ are packaged inside fgclip_jax."""

from setuptools import find_packages, setup

inside = {f"fgclip_jax.{folder}": folder for folder in ("configs", "examples")}
setup(packages=[*find_packages(include=["fgclip_jax*"]), *inside], package_dir=inside)
