"""From a job's configuration to its data and its model.

``data`` has a function for each kind of data, ``labelled`` for those with labels;
``model`` makes the model of them and compiles it.
"""
