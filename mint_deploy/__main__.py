"""``python -m mint_deploy`` is ``mint-deploy``."""

from mint_deploy.cli import main

if __name__ == "__main__":
    main()
