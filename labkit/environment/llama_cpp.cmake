# Read by the build of llama-cpp-python (CMAKE_PROJECT_INCLUDE; see create.py).
# Its CMakeLists.txt forces llama.cpp's "common" library on: chat templates, a JSON and a Jinja
# parser, an HTTP client, for command-line programs that the wheel does not carry. A normal
# variable wins over a forced cache entry (policy CMP0126), and 40 % of the objects go away.
set(LLAMA_BUILD_COMMON OFF)
