// The request of the form as a program. The key is not in it: it is read from HELIOGRAPH_KEY.

const OWN = new Set(["prompt", "model", "size", "n"]);
const PATHS = { picture: "/v1/images/generations", video: "/v1/videos" };

export function asCurl(kind, body) {
  const json = JSON.stringify(body).replaceAll("'", "'\\''");
  return [
    `curl ${location.origin}${PATHS[kind]} \\`,
    '  -H "Authorization: Bearer $HELIOGRAPH_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d '${json}'`,
  ].join("\n");
}

export function asPython(kind, body) {
  const own = Object.entries(body).filter(([name]) => OWN.has(name));
  const extra = Object.entries(body).filter(([name]) => !OWN.has(name));
  const lines = own.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (extra.length) {
    lines.push(`    extra_body={${extra.map(([name, value]) => `"${name}": ${literal(value)}`).join(", ")}},`);
  }
  const isVideo = kind === "video";
  return [
    ...(isVideo ? [] : ["import base64"]),
    "import os",
    ...(isVideo ? [] : ["from pathlib import Path"]),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key=os.environ.get("HELIOGRAPH_KEY", "none"))`,
    isVideo ? "video = client.videos.create_and_poll(" : "answer = client.images.generate(",
    ...lines,
    ")",
    isVideo
      ? 'client.videos.download_content(video.id).write_to_file("video.mp4")'
      : 'Path("picture.png").write_bytes(base64.b64decode(answer.data[0].b64_json))',
  ].join("\n") + "\n";
}

// JSON's texts and numbers are Python's too.
const literal = (value) => JSON.stringify(value);
