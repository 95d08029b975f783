import { ask, askForToken, sentences, signIn } from "./session.js"

const $ = id => document.getElementById(id)
const HUES = ["#d1495b", "#edae49", "#66a182", "#2e6f95", "#8d6a9f", "#c98686", "#5b8e7d", "#bc4b51", "#6c757d", "#3d5a80"]
const RATE = 16000
let classes = [], recorder = null, last = null, known = null, waiting = null, asked = 0

const hue = name => HUES[Math.max(0, classes.indexOf(name)) % HUES.length]
const say = text => { $("state").textContent = text }
const fail = text => { $("fault").textContent = text; say("") }
const percent = p => (100 * p).toFixed(1) + " %"

// Calls `act`, and once more with the token that is then typed, where the server wants one; says what went wrong.
async function attempt(act) {
  try {
    const response = await act()
    if (!response) return
    if (response.status === 401) {
      if (act !== learn) waiting = act
      fail(askForToken($("token")))
      return say(waiting ? "Waiting for the token; it is sent then." : "")
    }
    fail(sentences(await response.json()))
  } catch (error) { fail("The server cannot be reached: " + error.message) }
}

// The functions below that ask the server return the response that refused, or nothing.
async function learn() {
  const response = await ask("v1/model")
  if (response.status !== 200) return response
  const model = await response.json()
  known = model.model
  $("model").hidden = false; $("synthetic").hidden = !model.synthetic; $("card").open = false
  if ($("token").hidden) return
  $("token").hidden = true; $("fault").textContent = ""
  const again = waiting
  waiting = null
  if (again) { say("Listening …"); attempt(again) }
}

async function card() {
  const response = await ask("v1/card")
  if (response.status !== 200) return response
  $("card").querySelector("pre").textContent = await response.text()
}

async function decode(blob) {
  const context = new OfflineAudioContext(1, RATE, RATE)
  return context.decodeAudioData(await blob.arrayBuffer())
}

// 16-bit WAV: what a browser records (webm, mp4) is no format that the server reads
function wav(buffer) {
  const samples = buffer.getChannelData(0), view = new DataView(new ArrayBuffer(44 + 2 * samples.length))
  const word = (at, text) => [...text].forEach((c, n) => view.setUint8(at + n, c.charCodeAt(0)))
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ")
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true)
  view.setUint32(24, buffer.sampleRate, true); view.setUint32(28, 2 * buffer.sampleRate, true)
  view.setUint16(32, 2, true); view.setUint16(34, 16, true); word(36, "data"); view.setUint32(40, 2 * samples.length, true)
  samples.forEach((x, n) => view.setInt16(44 + 2 * n, Math.max(-1, Math.min(1, x)) * 32767, true))
  return new Blob([view], { type: "audio/wav" })
}

async function send(blob) {
  const form = new FormData()
  form.append("file", blob, "clip")
  if ($("text").value.trim()) form.append("text", $("text").value)
  form.append("trace", "true")
  form.append("votes", "false")
  return ask("v1/predict", { method: "POST", body: form })
}

async function predict(blob, recorded) {
  begin()
  const number = asked, heard = await decode(blob).catch(() => null)
  attempt(async () => {
    let response = await send(recorded && heard ? wav(heard) : blob)
    if (response.status === 415 && heard) response = await send(wav(heard))
    return finish(number, response, heard, blob)
  })
}

function read(text) {
  begin()
  const number = asked, body = JSON.stringify({ text, votes: false })
  attempt(async () => finish(number, await ask("v1/predict", { method: "POST", headers: { "Content-Type": "application/json" }, body })))
}

function begin() {
  asked++
  waiting = null; $("fault").textContent = ""; $("answer").hidden = true; say("Listening …")
}

async function finish(number, response, heard, blob) {
  if (number !== asked) return  // something else was asked meanwhile
  if (response.status !== 200) return response
  const answer = await response.json()
  show(answer, heard, blob); say("Done")
  if (answer.model !== known) attempt(learn)
}

// The answer for audio, with its drawing, or for text alone.
function show(answer, heard, blob) {
  classes = Object.keys(answer.probabilities)
  last = blob ? { answer, heard } : null
  $("answer").hidden = false; $("heard").hidden = !blob
  $("verdict").textContent = (blob || !answer.predicted ? "" : "The text alone: ") + (answer.predicted ? `${answer.predicted}, ${percent(answer.confidence)} sure` : "")
  URL.revokeObjectURL($("player").src)
  if (blob) $("player").src = URL.createObjectURL(blob)
  else $("player").removeAttribute("src")
  $("classes").replaceChildren(...classes.map(name => row([name, answer.probabilities[name]])))
  $("scales").replaceChildren(...Object.entries(answer.attributes).map(([name, a]) => {
    const line = document.createElement("tr")
    for (const text of [name, a.value.toFixed(2), `of ${a.scale[0]} to ${a.scale[1]}`]) line.insertCell().textContent = text
    return line
  }))
  $("note").textContent = [answer.note, `answered by ${answer.members} members of ensemble ${answer.model}`].filter(Boolean).join("; ")
  draw()
}

function row([name, p]) {
  const line = document.createElement("tr"), first = line.insertCell(), second = line.insertCell(), swatch = document.createElement("span"), bar = document.createElement("div")
  swatch.className = "swatch"; bar.className = "bar"
  swatch.style.background = bar.style.background = hue(name); bar.style.width = 100 * p + "%"
  first.append(swatch, name); second.append(bar); line.insertCell().textContent = percent(p)
  return line
}

function draw() {
  const labels = $("labels")
  labels.replaceChildren()
  if (!last) return
  const { answer, heard } = last, canvas = $("wave"), ratio = devicePixelRatio || 1
  const width = canvas.width = canvas.clientWidth * ratio, height = canvas.height = canvas.clientHeight * ratio
  const pen = canvas.getContext("2d"), seconds = heard ? heard.duration : answer.audio.seconds
  const segments = answer.segments && answer.segments.length ? answer.segments : [{ start_s: 0, end_s: seconds, ...answer }]
  // where segments overlap, the middle between two starts divides them
  const middle = s => (s.start_s + s.end_s) / 2
  const edges = segments.map((s, n) => n ? (middle(segments[n - 1]) + middle(s)) / 2 : 0).concat(seconds).map(t => t / seconds)
  segments.forEach((s, n) => {
    if (!s.predicted) return
    pen.globalAlpha = .15 + .5 * s.confidence; pen.fillStyle = hue(s.predicted); pen.fillRect(width * edges[n], 0, width * (edges[n + 1] - edges[n]), height)
  })
  pen.globalAlpha = 1; pen.fillStyle = getComputedStyle(document.body).color
  if (heard) {
    const samples = heard.getChannelData(0), step = samples.length / width
    let peak = 1e-4
    for (const x of samples) peak = Math.max(peak, Math.abs(x))
    for (let x = 0; x < width; x++) {
      let low = 0, high = 0
      for (let n = Math.floor(x * step); n < Math.min(samples.length, (x + 1) * step); n++) { low = Math.min(low, samples[n]); high = Math.max(high, samples[n]) }
      pen.fillRect(x, height / 2 * (1 - .9 * high / peak), 1, Math.max(1, height * .45 * (high - low) / peak))
    }
  }
  // labels lie over the canvas, so that nothing is painted over them: one for each run of segments alike, where it has room
  for (let n = 0, end; n < segments.length; n = end) {
    for (end = n + 1; end < segments.length && segments[end].predicted === segments[n].predicted;) end++
    if (!segments[n].predicted) continue
    const label = labels.appendChild(document.createElement("span"))
    label.textContent = segments[n].predicted; label.style.left = 100 * edges[n] + "%"
    if (label.getBoundingClientRect().width + 3 > canvas.clientWidth * (edges[end] - edges[n])) label.remove()
  }
}

async function record() {
  if (recorder) return recorder.stop()
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true })
    const parts = []
    recorder = new MediaRecorder(stream)
    recorder.ondataavailable = event => parts.push(event.data)
    recorder.onstop = () => {
      stream.getTracks().forEach(track => track.stop())
      const kind = recorder.mimeType
      recorder = null; $("record").setAttribute("aria-pressed", "false"); $("record").textContent = "Record"
      predict(new Blob(parts, { type: kind }), true)
    }
    recorder.start(); $("record").setAttribute("aria-pressed", "true"); $("record").textContent = "Stop"; say("Recording …"); $("fault").textContent = ""
  } catch (error) { fail("There is no microphone to record with: " + error.message) }
}

$("record").onclick = record
$("file").onchange = event => { if (event.target.files[0]) predict(event.target.files[0], false); event.target.value = "" }
$("text").onkeydown = event => { if (event.key === "Enter" && event.target.value.trim()) read(event.target.value) }
$("card").ontoggle = () => { if ($("card").open) attempt(card) }
const drop = $("drop")
drop.ondragover = event => { event.preventDefault(); drop.classList.add("over") }
drop.ondragleave = () => drop.classList.remove("over")
drop.ondrop = event => { event.preventDefault(); drop.classList.remove("over"); if (event.dataTransfer.files[0]) predict(event.dataTransfer.files[0], false) }
addEventListener("resize", draw)
signIn($("token"), () => attempt(learn))
attempt(learn)
