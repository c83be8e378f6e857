"""Inference backends, one file each; `deploy.session.BACKENDS` names them."""
