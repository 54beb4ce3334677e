// A photo to search with, from wherever it comes.

/** Call `take` with what is pasted into the page or dropped onto it. */
export function receive(take) {
  addEventListener('paste', (event) => {
    const file = event.clipboardData.files[0];
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  const dragged = (event) => event.dataTransfer.types.includes('Files');  // text goes its usual way
  addEventListener('dragover', (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    document.body.classList.add('dropping');
  });
  for (const name of ['dragleave', 'drop']) {
    addEventListener(name, () => document.body.classList.remove('dropping'));
  }
  addEventListener('drop', (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    const file = event.dataTransfer.files[0];
    if (file) take(file);
  });
}

/** That of a product, by its id. */
export async function ofProduct(id, signal) {
  const response = await fetch(`/photos/${encodeURIComponent(id)}`, { signal });
  if (!response.ok) throw new Error(`Product ${id} has no photo to search with.`);
  return response.blob();
}

/** A photo's bytes in base64. */
export async function base64(blob) {
  const reader = new FileReader();
  await new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  return reader.result.split(',')[1];
}

/** A photo from a file as a JPEG that fits into a request, on white where it is transparent. */
export async function fitted(file, side = 1024) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || 'This'} is no photo that can be read here; JPEG, PNG and WebP are.`);
  }
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const brush = canvas.getContext('2d');
  brush.fillStyle = 'white';
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/jpeg', 0.92));
}
