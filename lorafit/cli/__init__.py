"""The command line: arguments to a function of lorafit.api, its result to a reporter."""
