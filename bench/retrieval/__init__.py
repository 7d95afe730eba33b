"""Parts of retrieval, each alone: the models, the lexical index, how two lists become one."""
