"""GGUF, the file of llama.cpp: written and read tensor by tensor.

reader, parsing, cursor         a file that may lie, read through a memory map
writer, declaring, partial      a file that appears when it is whole
layout, values                  what both agree on
tokenizer_writing, …_reading    a Hugging Face tokenizer as metadata, and back
inspect_command                 `labkit gguf inspect`
"""
