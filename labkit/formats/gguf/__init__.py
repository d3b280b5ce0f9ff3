"""GGUF, the file of llama.cpp: written and read tensor by tensor.

layout, values                  what stands where in a file, and what a value is
reader, parsing, cursor         a file that may lie, read through a memory map
writer, declaring, partial      a file that appears when it is whole
tokenizer_writing, pieces       a Hugging Face tokenizer as metadata
tokenizer_reading               and back
pre_tokenizers, vocabulary      what both of these know
names, permute, rope, settings  a model's tensors and config.json in llama.cpp's terms
mix, imatrix                    which type each tensor gets, and which columns matter
inspect_command, describing     `labkit gguf inspect`
"""
