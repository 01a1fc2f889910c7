"""llama-cpp-python's OpenAI server on loopback, with weights that equal those of a folder of transformers."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


def python_of_llama_cpp():
    """Return the Python that has llama-cpp-python and its server: CALIBTUNE_LLAMA_CPP, or this one; else skip."""
    python = os.environ.get("CALIBTUNE_LLAMA_CPP", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp.server.app"], capture_output=True).returncode:
        pytest.skip("needs llama-cpp-python[server], which compiles for most of an hour: CALIBTUNE_LLAMA_CPP=PYTHON")
    return python


def widened(source, target):
    """Write a quantized GGUF with its weights in float32, rounded to bfloat16 as those of the transformers folder."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        bits = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        writer.add_tensor(tensor.name, rounded.view(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@contextlib.contextmanager
def llama_cpp_server(python, model, log):
    """Serve a GGUF; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"model": model, "host": "127.0.0.1", "port": port, "n_ctx": 1024, "logits_all": "true", "n_threads": 2}
    # Keys and values are held in float16 unless it is told otherwise.
    settings |= {"type_k": 0, "type_v": 0, "flash_attn": "false", "n_gpu_layers": 0}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    with open(log, "w") as file:
        process = subprocess.Popen([python, "-m", "llama_cpp.server", *words], stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{url}/models", timeout=5)
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()
