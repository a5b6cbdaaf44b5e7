"""The values of :mod:`mint_deploy.artifacts`, by stage: frozen, keyword-only, fields and little else."""
