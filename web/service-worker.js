// Keeps every file of the page, so that it works without a network after the first visit.
// What is kept belongs to one version of files.json; a new version is kept whole before the old one goes.

const PREFIX = "phone-";

async function listing() {
  return (await fetch("files.json", { cache: "no-store" })).json();
}

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const { version, files } = await listing();
  const cache = await caches.open(PREFIX + version);
  const kept = new Set((await cache.keys()).map((request) => request.url));
  for (const name of ["./", "files.json", ...Object.keys(files)]) {
    if (!kept.has(new URL(name, self.location.href).href)) await cache.add(name);
  }
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && name !== PREFIX + version) await caches.delete(name);
  }
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith((async () => {
    const answer = await caches.match(event.request, { ignoreSearch: true });
    return answer ?? fetch(event.request);
  })());
});
