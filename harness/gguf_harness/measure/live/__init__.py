"""A loaded model that is asked prompt by prompt: by the explorer, notebooks and scripts. Nothing here is cached."""
