pytest_plugins = ["helpers", "nnunet_host"]
